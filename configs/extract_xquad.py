"""Answers in paragraphs: XQuAD (Artetxe et al. 2020), 1,190 questions, in English or Chinese.

    python -m launch.finetune --tasks=xquad_en
    python -m lm.main --config=configs/extract_xquad.py:text=TRAIN,held_out=HELD_OUT,start=RUN

A network of 4 x 192 and a vocabulary of 4,096; minutes on two CPU cores from nothing. With `start=RUN` the
network and its tokenizer are that run's. The set was made for testing: a thousand questions teach little, and figures
here are no XQuAD results. The held-out questions are those of the last ten articles.
"""

from lm.config import Config, Every, Optimizer, Schedule
from lm.data.examples import Questions
from lm.data.prepare import Data
from lm.data.tokenizers import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.extract import Extract
from lm.objectives.trunk import Rows


def config(
    text: str = "runs/finetune/data/xquad_en/train.json",
    held_out: str = "runs/finetune/data/xquad_en/held_out.json",
    start: str | None = None,
    steps: int = 800,
) -> Config:
    model = Transformer(
        context=256, width=192, depth=4, heads=6, types=2, activation="gelu", init_positions=0.02, init_truncate=True,
        dropout=0.1, attention_dropout=0.1, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Extract(model=model, stride=128, dropout=0.1, rows=Rows(length=256, row=256)),
        data=Data(
            source=Questions(path=text),
            validation=Questions(path=held_out),
            tokenizer=WordPiece(vocab=4096),
        ),
        optimizer=Optimizer(lr=3e-4 if start else 5e-4, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=400, save=400, sample=400),
    )
