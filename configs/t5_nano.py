"""A T5 that learns in three minutes on two CPU cores: 2 + 2 x 128, on Python's documentation.

    python -m lm.objectives.span
    python -m lm.main --config=configs/t5_nano.py:text=my_text.txt

Raffel et al. 2020: 15 % of the tokens in spans of 3, a sentinel for each; 141 tokens of text fill 128 of the encoder and
29 of the decoder. Look at eval/validation/accuracy: the share of the decoder's tokens that are right, given those before
them. A quarter of those are sentinels, which come in order; text_accuracy leaves them out.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.span import Span


def config(text: str | None = None, data: str | None = None, steps: int = 1500) -> Config:
    model = Transformer(
        context=128, width=128, depth=2, heads=4, mlp=320, activation="geglu_tanh", norm="rms", eps=1e-6,
        positions="rotary", bias=False, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Span(model=twice(model)),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=512), packing="windows"),
        optimizer=Optimizer(name="muon", lr=4e-3, momentum=0.95, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=100, final=0.05),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
