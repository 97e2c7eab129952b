"""A Transformer-XL of seconds for tests: 2 x 32, bytes, two tail clusters."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.memory import TransformerXL
from lm.objectives.recurrent import Lengths, Recurrent


def config(text: str | None = None, data: str | None = None, dropout: float = 0.1) -> Config:
    return Config(
        objective=Recurrent(
            model=TransformerXL(
                context=16,
                memory=16,
                width=32,
                depth=2,
                heads=2,
                mlp=64,
                cutoffs=(100, 120),
                divide=2,
                pad_vocab=8,
                dropout=dropout,
                attention_dropout=dropout,
                position_dropout=dropout,
            ),
            evaluation=Lengths(context=8, memory=24, clamp=20),
        ),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005),
        optimizer=Optimizer(lr=1e-2, decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine"),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
