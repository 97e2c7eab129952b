"""A SimCSE of seconds for tests: 2 x 32, bytes, triples of the file beside this one."""

from pathlib import Path

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.text.files import JsonLines
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.contrastive import Contrastive


def config(dropout: float = 0.1) -> Config:
    path = str(Path(__file__).with_name("triples.jsonl"))
    return Config(
        objective=Contrastive(
            model=Transformer(context=32, width=32, depth=2, heads=2, pad_vocab=8, dropout=dropout, attention_dropout=dropout),
            fields=3,
            pooling="avg_first_last",
            hard_weight=1.0,
        ),
        data=Data(
            source=JsonLines(path=path, fields=("sentence", "entailed", "contradicted")),
            tokenizer=Bytes(),
            validation=0.2,
        ),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        schedule=Schedule(shape="cosine"),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
