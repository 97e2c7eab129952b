"""T5 base, 12 + 12 x 768, 223 M parameters (Raffel et al. 2020), or T5.1.1 base, 248 M (Shazeer 2020).

    python -m lm.main --config=configs/t5_base.py:text='corpus/*.txt'
    python -m lm.main --config=configs/t5_base.py:version=1.1,tokenizer=path/to/t5-v1_1-base

Raffel et al. 2020, 3.1: 2**19 steps of 128 rows; 568 tokens of text fill the encoder's 512, their targets are 114; 15 %
of the tokens in spans of 3. Adafactor at 1/sqrt(max(step, 10,000)). Dropout 0.1 in 1.0, none in 1.1 before fine-tuning.
The z-loss of 1e-4 is that of their code. The documents of a row run into each other, as theirs do.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import T5_1_1_BASE, T5_BASE, twice
from lm.objectives.span import Span


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    version: Literal["1.0", "1.1"] = "1.0",
) -> Config:
    shape = (T5_BASE if version == "1.0" else T5_1_1_BASE).decoder
    rate = 0.1 if version == "1.0" else 0.0
    model = replace(
        shape, dropout=rate, attention_dropout=rate, mlp_dropout=rate, pad_vocab=128, dtype="bfloat16", remat="dots"
    )
    return Config(
        objective=Span(model=twice(model), z_loss=1e-4),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=32000),
            validation=0.01,
            packing="windows",
        ),
        optimizer=Optimizer(name="adafactor", lr=0.01),
        schedule=Schedule(shape="flat_rsqrt", warmup=10_000),
        steps=2**19,
        batch=128,
        micro_batches=8,
        every=Every(log=50, evaluate=5000, save=5000),
    )
