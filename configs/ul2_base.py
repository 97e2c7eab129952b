"""UL2 at T5's base size, 12 + 12 x 768 (Tay et al. 2022), or on a decoder alone of that shape.

    python -m lm.main --config=configs/ul2_base.py:text='corpus/*.txt'
    python -m lm.main --config=configs/ul2_base.py:stacks=decoder,tokenizer=path/to/tokenizer.json

Tay et al. 2022, 4.1 and table 1: seven denoisers in equal parts, each row told its kind by a mode token; 512 tokens of
input and 512 of target, batches of 128 for 500,000 steps; Adafactor at 1/sqrt(max(step, 10,000)). With two stacks 44 % of
the decoder's places are padding, as three of seven denoisers ask for little; a decoder alone has rows without padding.
SwiGLU is that of their code, by report; the paper's table of sizes does not name it.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import T5_1_1_BASE, twice
from lm.objectives.prefix import Prefix, ul2


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    stacks: Literal["both", "decoder"] = "both",
) -> Config:
    # The shortest spans need more sentinels than T5's hundred: the vocabulary is the tokenizer's with those added.
    shape = replace(T5_1_1_BASE.decoder, activation="swiglu", vocab=0, pad_vocab=128, dtype="bfloat16", remat="dots")
    model = twice(shape) if stacks == "both" else replace(shape, context=1024)
    return Config(
        objective=Prefix(model=model, denoisers=ul2(), z_loss=1e-4),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=32000),
            validation=0.01,
            packing="windows",
        ),
        optimizer=Optimizer(name="adafactor", lr=0.01),
        schedule=Schedule(shape="flat_rsqrt", warmup=10_000),
        steps=500_000,
        batch=128,
        micro_batches=8,
        every=Every(log=50, evaluate=5000, save=5000),
    )
