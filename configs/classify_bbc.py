"""Which desk wrote it? 2,225 BBC articles in five sections (Greene & Cunningham 2006), the first 512 tokens of each.

    python -m launch.finetune --tasks=bbc
    python -m lm.main --config=configs/classify_bbc.py:text=TRAIN,held_out=HELD_OUT,start=RUN

A network of 3 x 128 and a vocabulary of 8,192; minutes on two CPU cores. It sees each article about twice and is trained as
`classify_imdb` is: dropout at the head alone, weights averaged. With `start=RUN` network and tokenizer are that run's,
pre-trained on the same kind of text. 133 articles that occur twice are left out.
"""

from dataclasses import replace

from configs.start_nano import ENCODER, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import WordPiece
from lm.objectives.classify import Classify
from lm.objectives.finetune.network import Head, Rows


def config(
    text: str = "runs/finetune/data/bbc/train.jsonl",
    held_out: str = "runs/finetune/data/bbc/held_out.jsonl",
    start: str | None = None,
    length: int = 512,
    steps: int = 400,
    batch: int = 8,
) -> Config:
    return Config(
        objective=Classify(
            model=replace(ENCODER, context=512), rows=Rows(length=length, row=512), head=Head(pool="mean", dropout=0.1)
        ),
        data=Data(
            source=Labelled(path=text),
            validation=Labelled(path=held_out),
            tokenizer=WordPiece(vocab=8192),
        ),
        optimizer=tuning(start, gently=2e-3, average=0.99),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=batch,
        start=start,
        every=Every(log=50, evaluate=steps, save=steps, sample=steps),
    )
