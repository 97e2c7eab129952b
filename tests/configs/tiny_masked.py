"""BERT in seconds: 2 x 16, bytes, next sentences, three maskings of each window."""

from lm.config import Config, Data, Every, Optimizer
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.masked import Masked


def config(text: str | None = None, data: str | None = None, dropout: float = 0.1) -> Config:
    model = Transformer(
        context=48, width=16, depth=2, heads=2, types=2, activation="gelu", placement="post", embed_norm=True,
        transform=True, head_bias=True, pad_vocab=8, dropout=dropout, attention_dropout=dropout,
    )  # fmt: skip
    return Config(
        objective=Masked(model=model, sentence="nsp", copies=3),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005),
        optimizer=Optimizer(lr=1e-2, decay=0.01, clip=1.0),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3, sample=3),
    )
