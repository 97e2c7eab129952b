"""A run of seconds for tests: an XLNet of 2 x 32 over bytes."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.two_stream import XLNet
from lm.objectives.permuted import Permuted


def config(text: str | None = None, data: str | None = None, dropout: float = 0.1) -> Config:
    model = XLNet(context=32, memory=8, width=32, depth=2, heads=2, pad_vocab=8, dropout=dropout, attention_dropout=dropout)
    return Config(
        objective=Permuted(model=model, predictions=8),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005, packing="windows"),
        optimizer=Optimizer(lr=1e-2, decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=2),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
