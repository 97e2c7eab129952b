"""A fine-tuning of seconds that writes: 2 + 2 x 16, or a decoder of 2 x 16 asked by a prompt; bytes."""

from pathlib import Path
from typing import Literal

from lm.config import Config, Data, Every, Optimizer
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.text2text import Reply, Text2text


def config(trunk: Literal["pair", "decoder", "prefix"] = "pair", dropout: float = 0.1) -> Config:
    model = Transformer(context=64, width=16, depth=2, heads=2, pad_vocab=8, dropout=dropout, attention_dropout=dropout)
    return Config(
        objective=Text2text(
            model=twice(model) if trunk == "pair" else model,
            source="say: {source}",
            bidirectional=trunk == "prefix",
            lengths=(40, 24),
            reply=Reply(tokens=8, most=3),
        ),
        data=Data(source=Labelled(path=str(Path(__file__).with_name("replies.jsonl"))), tokenizer=Bytes(), validation=0.2),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3, sample=3),
    )
