"""RoBERTa base and large (Liu et al. 2019; github.com/facebookresearch/fairseq): 125 M and 355 M parameters.

    python -m lm.main --config=configs/roberta_base.py:text='corpus/*.txt',tokenizer=path/to/roberta
    python -m lm.main --config=configs/roberta_base.py:text='corpus/*.txt',size=large,micro_batches=64

500 k steps of 8,192 x 512 tokens of full sentences, over the borders of documents, masked anew each time; special tokens
may be masked, random ones come from id 4 on. fairseq also decays biases and norms; here matrices only.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import ROBERTA_BASE, ROBERTA_LARGE
from lm.objectives.masked import Masked

SIZES = {"base": (ROBERTA_BASE, 6e-4, 24_000), "large": (ROBERTA_LARGE, 4e-4, 30_000)}  # model, peak rate, warm-up


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    size: Literal["base", "large"] = "base",
    micro_batches: int = 32,
) -> Config:
    model, lr, warmup = SIZES[size]
    model = replace(model, vocab=0, dropout=0.1, attention_dropout=0.1, dtype="bfloat16")
    return Config(
        objective=Masked(model=model, count="stochastic", specials=True, low=4),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=50257),
            validation=0.01,
            packing="windows",
        ),
        optimizer=Optimizer(lr=lr, betas=(0.9, 0.98), eps=1e-6, decay=0.01),
        schedule=Schedule(shape="linear", warmup=warmup),
        steps=500_000,
        batch=8192,
        micro_batches=micro_batches,
        every=Every(log=100, evaluate=5000, save=5000, sample=5000),
    )
