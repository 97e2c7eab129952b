"""Sentence vectors whose cosines say how alike texts are, small enough for two CPU cores.

    python -m lm.objectives.rank
    python -m lm.main --config=configs/rank_nano.py:text=sts-train.tsv,start=RUN

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
where it reads from left to right (GPT). Without it a network of 3 x 128 begins with nothing.
A file has the columns sentence1, sentence2 and score. Without one: are two sentences from one docstring? A network without
pre-training learns these 1,330 pairs by heart (squared error 0.005, held out 0.26, where always saying 0.5 has 0.25).
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.labelled.sources import examples_from, held_out_from
from lm.data.tokenizer.tokenizer import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.finetune.network import Rows
from lm.objectives.rank import Rank


def config(
    text: str | None = None,
    data: str | None = None,
    held_out: str | None = None,
    start: str | None = None,
    fields: tuple[str, str] = ("sentence1", "sentence2"),
    label: str = "score",
    causal: bool = False,
    steps: int = 400,
) -> Config:
    model = Transformer(
        context=96, width=128, depth=3, heads=4, types=0 if causal else 2, activation="gelu", init_positions=0.02,
        dropout=0.1, attention_dropout=0.1, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Rank(
            model=model,
            fields=fields,
            label=label,
            rows=Rows(length=96, causal=causal),
        ),
        data=Data(
            source=examples_from(text, "alike", data, fields[0]),
            validation=held_out_from(held_out, "alike", fields[0]),
            tokenizer=WordPiece(vocab=4096),
        ),
        optimizer=Optimizer(lr=5e-5 if start else 1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=200, save=200, sample=200),
    )
