"""BERT base and large, English (Devlin et al. 2019, A.2; github.com/google-research/bert): 110 M and 335 M parameters.

    python -m lm.main --config=configs/bert_base.py:text='corpus/*.txt',tokenizer=path/to/bert --workdir=runs/bert_128
    python -m lm.main --config=configs/bert_base.py:text='corpus/*.txt',tokenizer=path/to/bert,start=runs/bert_128

256 rows a step: 900 k steps of 128 tokens, then (`start`) 100 k of 512, on 3.3 G words of books and Wikipedia, ten static
maskings. `words=true` gives the whole-word models. The authors' Adam has no bias correction; after the warm-up that is
the same to 1e-4.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Pretrained, WordPiece
from lm.models.presets import BERT_BASE, BERT_LARGE
from lm.objectives.masked import Masked


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    size: Literal["base", "large"] = "base",
    words: bool = False,
    start: str | None = None,
    micro_batches: int = 1,
) -> Config:
    model = BERT_LARGE if size == "large" else BERT_BASE
    model = replace(model, vocab=0, dropout=0.1, attention_dropout=0.1, dtype="bfloat16")
    unit, length = "word" if words else "token", 512 if start else 128
    return Config(
        objective=Masked(model=model, length=length, unit=unit, sentence="nsp", copies=10),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else WordPiece(vocab=30522),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=1e-4, eps=1e-6, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=10_000),
        steps=100_000 if start else 900_000,
        batch=256,
        micro_batches=micro_batches,
        start=start,
        every=Every(log=100, evaluate=10_000, save=10_000, sample=10_000),
    )
