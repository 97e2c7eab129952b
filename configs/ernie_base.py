"""ERNIE 1.0, Chinese (Sun et al. 2019; github.com/PaddlePaddle/ERNIE, legacy tree): 12 x 768, relu.

    python -m lm.main --config=configs/ernie_base.py:text=FILE --workdir=runs/ernie_1
    python -m lm.main --config=configs/ernie_base.py:text=FILE,stage=phrase,start=runs/ernie_1 --workdir=runs/ernie_2
    python -m lm.main --config=configs/ernie_base.py:text=FILE,stage=entity,start=runs/ernie_2 --workdir=runs/ernie_3

Three stages: single characters, then phrases, then entities. FILE is a tagged corpus, `中国/ns 经济/n`, which marks both.
How the 1 M steps of 8,192 tokens are cut into stages, and the share of rows whose units are masked whole, are not
published: `steps`, `unit_share`.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.text.tagged import Tagged
from lm.data.tokenizer.tokenizer import Pretrained, WordPiece
from lm.models.presets import ERNIE_BASE
from lm.objectives.masked import Masked


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    stage: Literal["basic", "phrase", "entity"] = "basic",
    unit_share: float = 1.0,
    steps: int = 1_000_000,
    start: str | None = None,
) -> Config:
    model = replace(ERNIE_BASE, vocab=0, dropout=0.1, attention_dropout=0.1, dtype="bfloat16")
    unit = "token" if stage == "basic" else stage
    ernie = {"count": "each", "low": 1, "sentence": "consecutive"}
    return Config(
        objective=Masked(model=model, length=512, unit=unit, unit_share=unit_share, **ernie),
        data=Data(
            source=Tagged(path=text) if text else source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else WordPiece(vocab=18000),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=1e-4, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=5000),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=100, evaluate=10_000, save=10_000, sample=10_000),
    )
