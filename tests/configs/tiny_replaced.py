"""An ELECTRA of seconds for tests: 2 x 32 and a generator of 2 x 16, bytes."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.replaced import Replaced


def config(text: str | None = None, data: str | None = None, dropout: float = 0.1) -> Config:
    return Config(
        objective=Replaced(
            model=Transformer(
                context=32,
                width=32,
                depth=2,
                heads=2,
                embed=16,
                types=2,
                embed_norm=True,
                pad_vocab=8,
                dropout=dropout,
                attention_dropout=dropout,
            ),
            generator_width=0.5,
        ),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        schedule=Schedule(shape="cosine"),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
