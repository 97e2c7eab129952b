"""Mask-Predict in three minutes on two CPU cores: 2 + 2 x 128, the sentences and pairs of configs/translate_nano.py.

    python -m lm.objectives.conditional
    python -m lm.main --config=configs/mask_predict_nano.py:text=pairs.jsonl     # lines {"source": ..., "target": ...}

Ghazvininejad et al. 2019: masked tokens of a target given its source and the rest of it, all at once, and its length from a
slot before the source. Look at eval/validation/accuracy, of masked tokens, and length_accuracy.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import pairs_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.conditional import Conditional


def config(text: str | None = None, steps: int = 1200) -> Config:
    model = Transformer(
        context=128, width=128, depth=2, heads=4, activation="gelu", placement="post", init_positions=0.02,
        init_scale_depth=False, dropout=0.1, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Conditional(model=twice(model), smoothing=0.1),
        data=Data(source=pairs_from(text), tokenizer=BytePair(vocab=2048)),
        optimizer=Optimizer(lr=2e-3, betas=(0.9, 0.999), eps=1e-6, decay=0.01, clip=1.0),
        schedule=Schedule(shape="rsqrt", warmup=200),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=300, save=600, sample=600),
    )
