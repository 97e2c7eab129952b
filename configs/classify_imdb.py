"""Is a film review for or against? 25,000 of IMDB (Maas et al. 2011), up to 512 tokens of each, half from either end.

    python -m launch.finetune --tasks=imdb
    python -m lm.main --config=configs/classify_imdb.py:text=TRAIN,held_out=HELD_OUT,start=RUN

A network of 3 x 128 and a vocabulary of 8,192; a quarter of an hour on one CPU core. It sees each review about once, so it has
dropout at the head alone, and figures are of the mean of the last 200 steps' weights or so, as steps this large are noisy.
With `start=RUN` network and tokenizer are that run's, pre-trained on the same kind of text.
"""

from dataclasses import replace

from configs.start_nano import ENCODER, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import WordPiece
from lm.objectives.classify import Classify
from lm.objectives.finetune.network import Head, Rows


def config(
    text: str = "runs/finetune/data/imdb/train.jsonl",
    held_out: str = "runs/finetune/data/imdb/held_out.jsonl",
    start: str | None = None,
    steps: int = 1600,
) -> Config:
    return Config(
        objective=Classify(
            model=replace(ENCODER, context=512),
            rows=Rows(length=512, row=512),
            keep="both",
            head=Head(pool="mean", dropout=0.1),
        ),
        data=Data(
            source=Labelled(path=text),
            validation=Labelled(path=held_out),
            tokenizer=WordPiece(vocab=8192),
        ),
        optimizer=tuning(start, gently=2e-3, average=0.995),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=8,
        start=start,
        every=Every(log=50, evaluate=steps, save=steps // 4, sample=steps),
    )
