"""Cloze questions of running text, to pre-train extractive question answering on (`lm.data.labelled.cloze`).

    python -m lm.main --config=configs/extract_cloze.py:text='articles/*.txt',start=RUN --workdir=runs/cloze
    python -m lm.main --config=configs/extract_xquad.py:start=runs/cloze

A sentence with a gap is the question, a stretch of the same document the paragraph. Begins with a network of 3 x 128, or
with RUN's; minutes on two CPU cores. With 720 characters two questions fill a row of 512 tokens. 560 steps read some 12,000
questions once; reading half of them twice did not help. Chinese: `gap=什么,limit=260,steps=800`.
"""

from dataclasses import replace

from configs.start_nano import ENCODER, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Cloze
from lm.data.tokenizer.tokenizer import WordPiece
from lm.objectives.extract import Extract
from lm.objectives.finetune.network import Rows


def config(
    text: str = "runs/finetune/data/english.cloze.jsonl",
    start: str | None = None,
    gap: str = "what",
    limit: int = 720,
    steps: int = 560,
) -> Config:
    return Config(
        objective=Extract(model=replace(ENCODER, context=256), stride=128, types="asked", rows=Rows(length=256, row=512)),
        data=Data(
            source=Cloze(path=text, gap=gap, limit=limit),
            tokenizer=WordPiece(vocab=8192),
            validation=0.03,
        ),
        optimizer=tuning(start, gently=2e-3),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=8,
        start=start,
        every=Every(log=50, evaluate=400, save=400, sample=400),
    )
