"""An LSTM on the data of configs/gpt_nano.py and in its time: the baseline of a Transformer of three minutes.

    python -m lm.objectives.baselines [--config=configs/lstm_nano.py:text=my_text.txt]

One layer of 512: an LSTM's steps are one after another, and few wide products are faster than many narrow ones.
`carry=true` reads the corpus in order, each row going on where the row of the batch before ended.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.lstm import LSTM
from lm.objectives.baselines import LSTMLanguageModel


def config(text: str | None = None, data: str | None = None, steps: int = 1400, carry: bool = False) -> Config:
    return Config(
        objective=LSTMLanguageModel(model=LSTM(context=64, width=512, depth=1, dropout=0.2), carry=carry),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=2048)),
        optimizer=Optimizer(lr=4e-3, betas=(0.9, 0.98), decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=100, final=0.05),
        steps=steps,
        batch=32,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
