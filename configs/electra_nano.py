"""An ELECTRA that learns in three minutes on two CPU cores: 3 x 128 and a generator of 1 x 32, bytes of documentation.

    python -m lm.objectives.replaced
    python -m lm.main --config=configs/electra_nano.py:text=my_text.txt

Clark et al. 2020. Look at eval/validation/f1: a discriminator that calls every token original scores 0, one that calls
every token replaced 0.26. Bytes, because wrong letters are found sooner than wrong words; Muon, because under Adam the same
network takes several times as many steps to leave 0.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.replaced import Replaced


def config(text: str | None = None, data: str | None = None, steps: int = 1500) -> Config:
    return Config(
        objective=Replaced(
            model=Transformer(context=128, width=128, depth=3, heads=4, types=2, embed_norm=True, positions="rotary"),
            rate=0.25,
            generator_width=0.25,
            generator_depth=1 / 3,  # a better one fools a discriminator of minutes
        ),
        data=Data(source=source_from(text, data), tokenizer=Bytes()),
        optimizer=Optimizer(name="muon", lr=3e-3, momentum=0.95, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=100),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
