"""Tagging in seconds: 2 x 16, bytes, sentences beside this file; with a conditional random field unless `crf=no`."""

from pathlib import Path

from lm.config import Config, Data, Every, Optimizer
from lm.data.labelled.sources import Columns
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.finetune.network import Rows
from lm.objectives.tag import Tag


def config(crf: bool = True, dropout: float = 0.1) -> Config:
    model = Transformer(
        context=64, width=16, depth=2, heads=2, types=2, pad_vocab=8, dropout=dropout, attention_dropout=dropout
    )
    return Config(
        objective=Tag(model=model, crf=crf, dropout=dropout, overlap=8, rows=Rows(length=48)),
        data=Data(source=Columns(path=str(Path(__file__).with_name("sentences.conll"))), tokenizer=Bytes(), validation=0.2),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3, sample=3),
    )
