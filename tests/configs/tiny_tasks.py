"""Three tasks on one trunk of 2 x 16: reviews, tags and answers, each from the file of its own tiny config."""

from pathlib import Path

from lm.config import Config, Data, Every, Optimizer
from lm.data.labelled.sources import Columns, Labelled, Questions
from lm.data.sources import Mixture
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.classify import Classify
from lm.objectives.extract import Extract
from lm.objectives.finetune.network import Rows
from lm.objectives.mixture import Part
from lm.objectives.multitask import Tasks
from lm.objectives.tag import Tag


def config(dropout: float = 0.1, weights: tuple[float, ...] = (2.0, 1.0, 1.0), temperature: float = 1.0) -> Config:
    model = Transformer(
        context=96, width=16, depth=2, heads=2, types=2, pad_vocab=8, dropout=dropout, attention_dropout=dropout
    )
    files = {name: str(Path(__file__).with_name(name)) for name in ("reviews.csv", "sentences.conll", "questions.json")}
    return Config(
        objective=Tasks(
            parts=(
                Part(name="reviews", objective=Classify(model=model)),
                Part(name="tags", objective=Tag(model=model, overlap=8, rows=Rows(length=48)), weight=0.5),
                Part(name="answers", objective=Extract(model=model, stride=24, question=20, rows=Rows(length=72))),
            ),
        ),
        data=Data(
            source=Mixture(
                sources=(
                    Labelled(path=files["reviews.csv"]),
                    Columns(path=files["sentences.conll"]),
                    Questions(path=files["questions.json"]),
                ),
                weights=weights,
                temperature=temperature,
            ),
            tokenizer=Bytes(),
            validation=0.2,
        ),
        optimizer=Optimizer(lr=1e-2, clip=1.0),
        steps=4,
        batch=8,
        every=Every(log=1, evaluate=4, save=4, sample=4),
    )
