"""An LSTM run of seconds for tests: 2 x 32, bytes, the state carried from batch to batch."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.lstm import LSTM
from lm.objectives.baselines import LSTMLanguageModel


def config(
    text: str | None = None, data: str | None = None, dropout: float = 0.1, steps: int = 3, carry: bool = True
) -> Config:
    model = LSTM(context=32, width=32, depth=2, pad_vocab=8, dropout=dropout)
    return Config(
        objective=LSTMLanguageModel(model=model, carry=carry),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005),
        optimizer=Optimizer(lr=1e-2, decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=2),
        steps=steps,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
