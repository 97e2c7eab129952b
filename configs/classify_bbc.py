"""Which desk wrote it? 2,225 BBC articles in five sections (Greene & Cunningham 2006), the first 256 tokens of each.

    python -m launch.finetune --tasks=bbc
    python -m lm.main --config=configs/classify_bbc.py:text=TRAIN,held_out=HELD_OUT,start=RUN

A network of 3 x 128 and a vocabulary of 8,192; minutes on two CPU cores from nothing. With `start=RUN` the
network and its tokenizer are that run's, pre-trained on the same kind of text. 133 articles that occur twice are left out.
"""

from configs.start_nano import ENCODER, tuned, tuning
from lm.config import Config, Every, Schedule
from lm.data.examples import Labelled
from lm.data.prepare import Data
from lm.data.tokenizers import WordPiece
from lm.objectives.classify import Classify
from lm.objectives.trunk import Head, Rows


def config(
    text: str = "runs/finetune/data/bbc/train.jsonl",
    held_out: str = "runs/finetune/data/bbc/held_out.jsonl",
    start: str | None = None,
    length: int = 256,
    steps: int = 300,
    batch: int = 16,
) -> Config:
    return Config(
        objective=Classify(model=tuned(ENCODER), rows=Rows(length=length, row=256), head=Head(pool="mean", dropout=0.1)),
        data=Data(
            source=Labelled(path=text),
            validation=Labelled(path=held_out),
            tokenizer=WordPiece(vocab=8192),
        ),
        optimizer=tuning(start, gently=2e-3),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=batch,
        start=start,
        every=Every(log=50, evaluate=100, save=300, sample=300),
    )
