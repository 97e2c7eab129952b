"""Answers as spans, small enough for two CPU cores: what is this function for? Some questions have no answer.

    python -m lm.objectives.extract
    python -m lm.main --config=configs/extract_nano.py:text=train-v2.0.json,held_out=dev-v2.0.json,start=HF_DIR,length=384

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
where it reads from left to right (GPT). Without it a network of 3 x 128 begins with nothing.
Look at eval/validation/exact: the share of windows with both ends right; a network without pre-training stays at 0.16.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.labelled.sources import examples_from, held_out_from
from lm.data.tokenizer.tokenizer import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.extract import Extract
from lm.objectives.finetune.network import Rows


def config(
    text: str | None = None,
    data: str | None = None,
    held_out: str | None = None,
    start: str | None = None,
    length: int = 192,
    stride: int = 128,
    causal: bool = False,
    steps: int = 1000,
) -> Config:
    model = Transformer(
        context=max(192, length), width=128, depth=3, heads=4, types=0 if causal else 2, activation="gelu", init_positions=0.02,
        dropout=0.1, attention_dropout=0.1, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Extract(
            model=model,
            stride=stride,
            dropout=0.1,
            rows=Rows(length=length, causal=causal),
        ),
        data=Data(
            source=examples_from(text, "questions", data, "question"),
            validation=held_out_from(held_out, "questions", "question"),
            tokenizer=WordPiece(vocab=4096),
        ),
        optimizer=Optimizer(lr=5e-5 if start else 1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=200, save=200, sample=200),
    )
