"""ELECTRA small, base and large (Clark et al. 2020, table 6; github.com/google-research/electra).

    python -m lm.main --config=configs/electra_small.py:text='corpus/*.txt',tokenizer=path/to/bert
    python -m lm.main --config=configs/electra_small.py:size=base,text='corpus/*.txt',tokenizer=path/to/bert

14 M, 110 M and 335 M parameters. Small: 1 M steps of 128 x 128 tokens; base 766 k of 256 x 512; large 400 k of 2048 x 512
with a masking rate of 0.25. The authors' Adam has no bias correction; that of optax has, which after the warm-up of 10,000
steps is the same to 1e-4. The generator of the small model that they released is as wide as the model:
--config.objective.generator_width=1.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import ELECTRA_BASE, ELECTRA_LARGE, ELECTRA_SMALL
from lm.objectives.replaced import Replaced

# model, generator's share of the width, masking rate, tokens a row, rows, peak learning rate, steps
SIZES = {
    "small": (ELECTRA_SMALL, 1 / 4, 0.15, 128, 128, 5e-4, 1_000_000),
    "base": (ELECTRA_BASE, 1 / 3, 0.15, 512, 256, 2e-4, 766_000),
    "large": (ELECTRA_LARGE, 1 / 4, 0.25, 512, 2048, 2e-4, 400_000),
}


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    size: Literal["small", "base", "large"] = "small",
    micro_batches: int = 1,
) -> Config:
    model, width, rate, context, batch, lr, steps = SIZES[size]
    model = replace(model, context=context, dropout=0.1, attention_dropout=0.1, dtype="bfloat16", transform=False)
    return Config(
        objective=Replaced(model=replace(model, vocab=0, head_bias=False), generator_width=width, rate=rate),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=30000),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=lr, eps=1e-6, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=10_000),
        steps=steps,
        batch=batch,
        micro_batches=micro_batches,
        every=Every(log=100, evaluate=10_000, save=10_000, sample=10_000),
    )
