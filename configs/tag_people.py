"""People, places and organisations in the People's Daily of January 1998, a tag for each character.

    python -m launch.finetune --tasks=people
    python -m lm.main --config=configs/tag_people.py:text=TRAIN,held_out=HELD_OUT,start=RUN

A network of 3 x 128; minutes on two CPU cores from nothing. With `start=RUN` the network and its tokenizer are
that run's. The held-out lines are the last tenth of the month.
"""

from configs.start_nano import ENCODER, tuned, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Entities
from lm.data.tokenizer.tokenizer import WordPiece
from lm.objectives.finetune.network import Rows
from lm.objectives.tag import Tag


def config(
    text: str = "runs/finetune/data/people/train.txt",
    held_out: str = "runs/finetune/data/people/held_out.txt",
    start: str | None = None,
    crf: bool = True,
    steps: int = 300,
) -> Config:
    return Config(
        objective=Tag(model=tuned(ENCODER), crf=crf, dropout=0.1, rows=Rows(length=128, row=256)),
        data=Data(
            source=Entities(path=text),
            validation=Entities(path=held_out),
            tokenizer=WordPiece(vocab=8192),
        ),
        optimizer=tuning(start),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=100, save=150, sample=150),
    )
