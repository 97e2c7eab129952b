"""Ten types of entities in 2,394 English tweets (Ritter et al. 2011); `crf=yes` learns which tag follows which.

    python -m launch.finetune --tasks=tweets
    python -m lm.main --config=configs/tag_tweets.py:text=TRAIN,held_out=HELD_OUT,start=RUN

A network of 3 x 128 and a vocabulary of 8,192; minutes on two CPU cores from nothing. With `start=RUN` the
network and its tokenizer are that run's. From nothing, tweets this few teach no more than a
list of their words does.
"""

from configs.start_nano import ENCODER, tuned, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Columns
from lm.data.tokenizer.tokenizer import WordPiece
from lm.objectives.finetune.network import Rows
from lm.objectives.tag import Tag


def config(
    text: str = "runs/finetune/data/tweets/train.conll",
    held_out: str = "runs/finetune/data/tweets/held_out.conll",
    start: str | None = None,
    crf: bool = False,
    steps: int = 600,
    batch: int = 16,
) -> Config:
    return Config(
        objective=Tag(model=tuned(ENCODER, 128), crf=crf, dropout=0.1, rows=Rows(length=128)),
        data=Data(
            source=Columns(path=text, separator="\t"),
            validation=Columns(path=held_out, separator="\t"),
            tokenizer=WordPiece(vocab=8192),  # with capitals, so small a set teaches less
        ),
        optimizer=tuning(start),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=batch,
        start=start,
        every=Every(log=50, evaluate=150, save=300, sample=300),
    )
