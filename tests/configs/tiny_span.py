"""A T5 of seconds for tests: 2 + 2 x 16, bytes."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.span import Span


def config(text: str | None = None, data: str | None = None, dropout: float = 0.1) -> Config:
    model = Transformer(
        context=32, width=16, depth=2, heads=2, norm="rms", positions="bucket", bias=False, pad_vocab=8,
        dropout=dropout, attention_dropout=dropout,
    )  # fmt: skip
    return Config(
        objective=Span(model=twice(model), z_loss=1e-4),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005, packing="windows"),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        schedule=Schedule(shape="cosine"),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
