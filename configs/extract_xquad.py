"""Answers in paragraphs: XQuAD (Artetxe et al. 2020), 1,190 questions, in English or Chinese.

    python -m launch.finetune --tasks=xquad_en
    python -m lm.main --config=configs/extract_xquad.py:text=TRAIN,held_out=HELD_OUT,start=RUN

A network of 3 x 128 and a vocabulary of 8,192; minutes on two CPU cores from nothing. With `start=RUN` the network and its
tokenizer are that run's: best one of `extract_cloze.py`; a published folder wants `types=second`. The set was made for
testing: a thousand questions teach little, and figures here are no XQuAD results. The held-out questions are those of the
last ten articles.
"""

from typing import Literal

from configs.start_nano import ENCODER, tuned, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Questions
from lm.data.tokenizer.tokenizer import WordPiece
from lm.objectives.extract import Extract
from lm.objectives.finetune.network import Rows


def config(
    text: str = "runs/finetune/data/xquad_en/train.json",
    held_out: str = "runs/finetune/data/xquad_en/held_out.json",
    start: str | None = None,
    types: Literal["second", "asked"] = "asked",
    steps: int = 150,
    batch: int = 8,
) -> Config:
    return Config(
        objective=Extract(model=tuned(ENCODER), stride=128, types=types, dropout=0.1, rows=Rows(length=256)),
        data=Data(
            source=Questions(path=text),
            validation=Questions(path=held_out),
            tokenizer=WordPiece(vocab=8192),
        ),
        optimizer=tuning(start),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=batch,
        start=start,
        every=Every(log=50, evaluate=50, save=150, sample=150),
    )
