"""An XLNet that learns in three minutes on two CPU cores: 4 x 192, rows of 128 tokens of which 21 are predicted.

    python -m lm.objectives.permuted
    python -m lm.main --config=configs/xlnet_nano.py:text=my_text.txt

Yang et al. 2019. The loss on held-out text is the cross-entropy of the predicted tokens, each given the tokens before it in
a random order; the trivial guess, the tokens' frequency, costs 6.16 nats and is right in 7 of 100.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.two_stream import XLNet
from lm.objectives.permuted import Permuted


def config(text: str | None = None, data: str | None = None, steps: int = 700) -> Config:
    return Config(
        objective=Permuted(model=XLNet(context=128, memory=32, width=192, depth=4, heads=6, unroll=0)),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=2048), packing="windows"),
        optimizer=Optimizer(lr=2e-3, betas=(0.9, 0.98), decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=100, final=0.05),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=350, save=350, sample=350),
    )
