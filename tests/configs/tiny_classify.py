"""A fine-tuning of seconds: 2 x 16, bytes, several reviews a row; `kind` as in the objective, `trunk` the network."""

from pathlib import Path
from typing import Literal

from lm.config import Config, Data, Every, Optimizer
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.models.two_stream import XLNet
from lm.objectives.classify import Classify
from lm.objectives.finetune.network import Head, Rows

LABELS = {"one": "label", "several": "topics", "number": "stars"}


def config(
    kind: Literal["one", "several", "number"] = "one",
    trunk: Literal["encoder", "decoder", "pair", "xlnet"] = "encoder",
    dropout: float = 0.1,
) -> Config:
    shape = {"context": 64, "width": 16, "depth": 2, "heads": 2, "dropout": dropout, "attention_dropout": dropout}
    model = XLNet(**shape) if trunk == "xlnet" else Transformer(**shape, types=2 * (trunk == "encoder"), pad_vocab=8)
    return Config(
        objective=Classify(
            model=twice(model) if trunk == "pair" else model,
            kind=kind,
            label=LABELS[kind],
            rows=Rows(causal=trunk == "decoder", pack=trunk != "xlnet"),
            head=Head(dropout=dropout),
        ),
        data=Data(source=Labelled(path=str(Path(__file__).with_name("reviews.csv"))), tokenizer=Bytes(), validation=0.2),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3, sample=3),
    )
