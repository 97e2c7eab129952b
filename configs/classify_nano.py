"""A classifier that learns in minutes on two CPU cores: which package of Python is a paragraph of documentation from?

    python -m lm.objectives.classify
    python -m lm.main --config=configs/classify_nano.py:text=pairs.tsv,fields=premise,hypothesis,start=HF_DIR
    python -m lm.main --config=configs/classify_nano.py:data=tfds:glue/sst2,held_out=tfds:glue/sst2:validation,fields=sentence

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
where it reads from left to right (GPT). Without it a network of 3 x 128 learns from nothing but the examples. `kind=number`
learns scores, `language` is that of XNLI. Look at eval/validation/accuracy: 22 packages, the largest a sixth of them.
"""

from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.labelled.sources import examples_from, held_out_from
from lm.data.tokenizer.tokenizer import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.classify import Classify
from lm.objectives.finetune.network import Head, Rows


def config(
    text: str | None = None,
    data: str | None = None,
    held_out: str | None = None,
    start: str | None = None,
    fields: tuple[str, ...] = ("text",),
    label: str = "label",
    kind: Literal["one", "several", "number"] = "one",
    language: str = "",
    causal: bool = False,
    steps: int = 600,
) -> Config:
    model = Transformer(
        context=128, width=128, depth=3, heads=4, types=0 if causal else 2, activation="gelu", init_positions=0.02,
        dropout=0.1, attention_dropout=0.1, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Classify(
            model=model,
            fields=fields,
            label=label,
            kind=kind,
            rows=Rows(causal=causal),
            # The first token of a network from scratch would have to learn to look at the others.
            head=Head(pool="auto" if start else "mean", dropout=0.1),
        ),
        data=Data(
            source=examples_from(text, "topic", data, fields[0], language),
            validation=held_out_from(held_out, "topic", fields[0], language),
            tokenizer=WordPiece(vocab=4096),
        ),
        optimizer=Optimizer(lr=5e-5 if start else 1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=200, save=200, sample=200),
    )
