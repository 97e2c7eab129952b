"""Character-level GPT on tiny Shakespeare, the field's usual first run; the reference loss is 1.88 after 2,000 steps.

    python -m lm.main --config=configs/gpt_shakespeare_char.py:text=tiny_shakespeare.txt

`size=baby` is the larger form: 6 x 384, context 256, 5,000 steps. Without `text=` the corpus comes from TFDS.
"""

from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Characters
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal


def config(
    text: str | None = None, data: str | None = None, size: Literal["char", "baby"] = "char", steps: int | None = None
) -> Config:
    baby = size == "baby"
    return Config(
        objective=Causal(
            model=Transformer(
                context=256 if baby else 64,
                width=384 if baby else 128,
                depth=6 if baby else 4,
                heads=6 if baby else 4,
                bias=False,
                dropout=0.2 if baby else 0.0,
                attention_dropout=0.2 if baby else 0.0,
                init_positions=0.02,
                unroll=0,
            )
        ),
        data=Data(
            source=source_from(text, data or (None if text else "tfds:tiny_shakespeare")),
            tokenizer=Characters(),
            validation=0.1,
            packing="windows",
        ),
        optimizer=Optimizer(lr=1e-3, betas=(0.9, 0.99), decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=100, final=0.1),
        steps=steps or (5000 if baby else 2000),
        batch=64 if baby else 12,
        seed=1337,
        every=Every(log=100, evaluate=250, save=500),
        samples=("\n",),
    )
