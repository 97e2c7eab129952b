"""A SimCSE of seconds for tests: 2 x 32, bytes, sentences of running text and the masked-token term."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.contrastive import Contrastive


def config(text: str | None = None, data: str | None = None, dropout: float = 0.1) -> Config:
    return Config(
        objective=Contrastive(
            model=Transformer(
                context=32,
                width=32,
                depth=2,
                heads=2,
                placement="post",
                embed_norm=True,
                transform=True,
                head_bias=True,
                pad_vocab=8,
                dropout=dropout,
                attention_dropout=dropout,
            ),
            mlm=0.1,
        ),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        schedule=Schedule(shape="cosine"),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
