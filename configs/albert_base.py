"""ALBERT base and large (Lan et al. 2020; github.com/google-research/albert): 12 M and 18 M parameters.

    python -m lm.main --config=configs/albert_base.py:text='corpus/*.txt',tokenizer=path/to/albert
    python -m lm.main --config=configs/albert_base.py:text='corpus/*.txt',size=large

One layer's parameters for all layers, tables of width 128. 125 k steps of 4,096 x 512 tokens; masks are n-grams of 1 to 3
words with p ~ 1/n, 40 static copies, and sentences are swapped or not. The authors use LAMB at 1.76e-3; AdamW here,
with RoBERTa's rate for such batches.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Pretrained, WordPiece
from lm.models.presets import ALBERT_BASE, ALBERT_LARGE
from lm.objectives.masked import Masked


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    size: Literal["base", "large"] = "base",
    micro_batches: int = 32,
) -> Config:
    model = ALBERT_LARGE if size == "large" else ALBERT_BASE
    model = replace(model, vocab=0, dropout=0.1, attention_dropout=0.1, dtype="bfloat16")
    ngrams = (6 / 11, 3 / 11, 2 / 11)  # 1, 1/2, 1/3
    return Config(
        objective=Masked(model=model, unit="word", ngrams=ngrams, sentence="sop", copies=40),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else WordPiece(vocab=30000),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=5e-4, eps=1e-6, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=3125),
        steps=125_000,
        batch=4096,
        micro_batches=micro_batches,
        every=Every(log=100, evaluate=5000, save=5000, sample=5000),
    )
