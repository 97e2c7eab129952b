"""Mask-Predict, 6 + 6 x 512 (Ghazvininejad et al. 2019): all tokens of a target at once.

    python -m lm.main --config=configs/mask_predict_base.py:text=wmt14.en-de.jsonl

A line of the file is {"source": "...", "target": "..."}; without `text=` the pairs of configs/translate_nano.py. Rate 5e-4
after 10,000 steps, then inverse square root; Adam (0.9, 0.999, 1e-6), decay 0.01, dropout 0.3, label smoothing 0.1;
about 128,000 tokens a step (8,192 on each of 16 devices), 300,000 steps. The paper trains on targets that a Transformer
translated, and evaluates an average of checkpoints: here a moving one.
"""

from dataclasses import replace

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import pairs_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import MASK_PREDICT_BASE, twice
from lm.objectives.conditional import Conditional


def config(text: str | None = None, tokenizer: str | None = None) -> Config:
    model = replace(MASK_PREDICT_BASE.decoder, context=512, dropout=0.3, pad_vocab=128, dtype="bfloat16")
    return Config(
        objective=Conditional(model=twice(model), smoothing=0.1),
        data=Data(
            source=pairs_from(text),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=36_998),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=5e-4, betas=(0.9, 0.999), eps=1e-6, decay=0.01, average=0.999),
        schedule=Schedule(shape="rsqrt", warmup=10_000),
        steps=300_000,
        batch=256,
        micro_batches=2,
        every=Every(log=100, evaluate=1000, save=1000),
    )
