"""The Transformer, base, 6 + 6 x 512 (Vaswani et al. 2017), or big, 6 + 6 x 1024.

    python -m lm.main --config=configs/transformer_base.py:text=wmt14.en-de.jsonl

A line of the file is {"source": "...", "target": "..."}; without `text=` the pairs of configs/translate_nano.py. About
25,000 source and 25,000 target tokens a step in 48 packed rows, 100,000 steps (big: 300,000), Adam (0.9, 0.98, 1e-9),
width^-0.5 x min(step^-0.5, step x 4000^-1.5), label smoothing 0.1, dropout 0.1 (big: 0.3). The paper averages the last
5 (20) checkpoints; here an exponential moving average takes their place.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import pairs_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import TRANSFORMER_BASE, TRANSFORMER_BIG, twice
from lm.objectives.seq2seq import Seq2seq


def config(text: str | None = None, tokenizer: str | None = None, size: Literal["base", "big"] = "base") -> Config:
    shape = (TRANSFORMER_BIG if size == "big" else TRANSFORMER_BASE).decoder
    rate = 0.3 if size == "big" else 0.1
    model = replace(shape, context=512, dropout=rate, pad_vocab=128, dtype="bfloat16")
    return Config(
        objective=Seq2seq(model=twice(model), smoothing=0.1),
        data=Data(
            source=pairs_from(text),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=36_999),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=(model.width * 4000) ** -0.5, betas=(0.9, 0.98), eps=1e-9, average=0.999),
        schedule=Schedule(shape="rsqrt", warmup=4000),
        steps=300_000 if size == "big" else 100_000,
        batch=48,
        every=Every(log=100, evaluate=1000, save=1000),
    )
