"""Multiple choice, small enough for two CPU cores: which of four texts belongs to this name?

    python -m lm.objectives.choice
    python -m lm.main --config=configs/choice_nano.py:text=race.jsonl,question=question,start=HF_DIR

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
where it reads from left to right (GPT). Without it a network of 3 x 128 begins with nothing.
A line of the file: {"context": ..., "question": ..., "options": [...], "label": 0}. Chance is a quarter, and a network
without pre-training stays there (0.27 after 100 steps); counting the words that name and text share gives a half.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.labelled.sources import examples_from, held_out_from
from lm.data.tokenizer.tokenizer import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.choice import Choose
from lm.objectives.finetune.network import Head, Rows


def config(
    text: str | None = None,
    data: str | None = None,
    held_out: str | None = None,
    start: str | None = None,
    question: str = "",
    causal: bool = False,
    steps: int = 1000,
) -> Config:
    model = Transformer(
        context=96, width=128, depth=3, heads=4, types=0 if causal else 2, activation="gelu", init_positions=0.02,
        dropout=0.1, attention_dropout=0.1, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Choose(
            model=model,
            question=question,
            rows=Rows(causal=causal),
            head=Head(pool="auto" if start else "mean", dropout=0.1),
        ),
        data=Data(
            source=examples_from(text, "next", data, "label"),
            validation=held_out_from(held_out, "next", "label"),
            tokenizer=WordPiece(vocab=4096),
        ),
        optimizer=Optimizer(lr=5e-5 if start else 1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=200, save=200, sample=200),
    )
