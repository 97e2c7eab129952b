"""A run of seconds for tests: pairs of sentences, 2 + 2 x 32, bytes."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import pairs_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.seq2seq import Seq2seq


def config(text: str | None = None, dropout: float = 0.1) -> Config:
    model = Transformer(
        context=64, width=32, depth=2, heads=2, pad_vocab=8, activation="relu", placement="post", positions="sinusoidal",
        embed_scale=32**0.5, dropout=dropout, attention_dropout=dropout,
    )  # fmt: skip
    return Config(
        objective=Seq2seq(model=twice(model), smoothing=0.1),
        data=Data(source=pairs_from(text), tokenizer=Bytes(), validation=0.1 if text else 0.005),
        optimizer=Optimizer(lr=1e-2, decay=0.1, clip=1.0, average=0.9),
        schedule=Schedule(shape="rsqrt", warmup=2),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=2, save=2),
    )
