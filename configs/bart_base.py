"""BART base, 6 + 6 x 768, 139 M parameters (Lewis et al. 2020), or large, 12 + 12 x 1024.

    python -m lm.main --config=configs/bart_base.py:text='corpus/*.txt'
    python -m lm.main --config=configs/bart_base.py:size=large,tokenizer=path/to/bart-large

Blocks of 512 tokens, all sentences shuffled, 30 % of the words in spans of Poisson length, mean 3, one mask a span; in
batches of 8,000 for 500,000 steps. The rest is not in the paper and comes from the authors' training command (fairseq
issue 1899): one mask in ten a random token, rate 4e-4 after 10,000 steps and down to 0, clipping at 0.1, dropout 0.1.
Their Poisson mean there is 3.5: --config.objective.poisson=3.5.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import BART_BASE, BART_LARGE, twice
from lm.objectives.denoise import Denoise


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    size: Literal["base", "large"] = "base",
) -> Config:
    shape = (BART_LARGE if size == "large" else BART_BASE).decoder
    model = replace(shape, dropout=0.1, attention_dropout=0.1, pad_vocab=128, dtype="bfloat16", remat="dots")
    return Config(
        objective=Denoise(model=twice(model), length=512, random=0.1),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=50257),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=4e-4, betas=(0.9, 0.98), eps=1e-6, decay=0.01, clip=0.1),
        schedule=Schedule(shape="linear", warmup=10_000),
        steps=500_000,
        batch=8000,
        micro_batches=250,
        every=Every(log=10, evaluate=1000, save=1000),
    )
