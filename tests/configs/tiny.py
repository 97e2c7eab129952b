"""A run of seconds for tests: 2 x 32, bytes."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal


def config(text: str | None = None, data: str | None = None, dropout: float = 0.1) -> Config:
    return Config(
        objective=Causal(
            model=Transformer(context=32, width=32, depth=2, heads=2, pad_vocab=8, dropout=dropout, attention_dropout=dropout)
        ),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005),
        optimizer=Optimizer(lr=1e-2, decay=0.1, clip=1.0, average=0.9),
        schedule=Schedule(shape="cosine", warmup=2),
        steps=12,
        batch=8,
        every=Every(log=1, evaluate=6, save=4),
    )
