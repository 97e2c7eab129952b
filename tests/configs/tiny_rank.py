"""Sentence vectors in seconds: 2 x 16, bytes."""

from pathlib import Path

from lm.config import Config, Data, Every, Optimizer
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.finetune.network import Rows
from lm.objectives.rank import Rank


def config(dropout: float = 0.1) -> Config:
    model = Transformer(
        context=48, width=16, depth=2, heads=2, types=2, pad_vocab=8, dropout=dropout, attention_dropout=dropout
    )
    return Config(
        objective=Rank(model=model, rows=Rows(row=96)),
        data=Data(source=Labelled(path=str(Path(__file__).with_name("alike.tsv"))), tokenizer=Bytes(), validation=0.2),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3, sample=3),
    )
