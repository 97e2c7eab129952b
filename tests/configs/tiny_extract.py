"""Answers in seconds: 2 x 16, bytes, windows of paragraphs in two scripts, questions with no answer."""

from pathlib import Path

from lm.config import Config, Data, Every, Optimizer
from lm.data.labelled.sources import Questions
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.extract import Extract
from lm.objectives.finetune.network import Rows


def config(dropout: float = 0.1) -> Config:
    model = Transformer(
        context=96, width=16, depth=2, heads=2, types=2, pad_vocab=8, dropout=dropout, attention_dropout=dropout
    )
    return Config(
        objective=Extract(model=model, stride=24, question=20, dropout=dropout, rows=Rows(length=72)),
        data=Data(source=Questions(path=str(Path(__file__).with_name("questions.json"))), tokenizer=Bytes(), validation=0.2),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3, sample=3),
    )
