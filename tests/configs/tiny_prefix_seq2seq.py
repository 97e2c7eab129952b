"""UL2 of seconds for tests: 2 + 2 x 16, bytes, label smoothing."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.prefix import Prefix, ul2


def config(text: str | None = None, data: str | None = None, dropout: float = 0.1) -> Config:
    model = Transformer(
        context=32, width=16, depth=2, heads=2, norm="rms", positions="bucket", bias=False, pad_vocab=8,
        dropout=dropout, attention_dropout=dropout,
    )  # fmt: skip
    return Config(
        objective=Prefix(model=twice(model), denoisers=ul2(0.4, 0.4, 0.2), smoothing=0.1),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005, packing="documents"),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        schedule=Schedule(shape="cosine"),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
