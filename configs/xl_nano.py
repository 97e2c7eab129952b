"""A Transformer-XL that learns in three minutes on two CPU cores: 4 x 192, segments of 32 tokens, a memory of 96.

    python -m lm.objectives.recurrent
    python -m lm.main --config=configs/xl_nano.py:text=my_text.txt
    python -m lm.main --config=configs/xl_nano.py:memory=0             # the same without memory

Dai et al. 2019. Held-out text is read with a memory twice as long as in training; `Recurrent.without_memory()` reads it
segment by segment with the same parameters, so that the difference is the gain of the memory.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.memory import TransformerXL
from lm.objectives.recurrent import Lengths, Recurrent


def config(text: str | None = None, data: str | None = None, steps: int = 1500, memory: int = 96) -> Config:
    return Config(
        objective=Recurrent(
            model=TransformerXL(context=32, memory=memory, width=192, depth=4, heads=6, cutoffs=(512,), unroll=0),
            evaluation=Lengths(context=32, memory=2 * memory, clamp=2 * memory),
        ),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=2048), packing="windows"),
        optimizer=Optimizer(lr=2e-3, betas=(0.9, 0.98), clip=0.25),
        schedule=Schedule(shape="cosine", warmup=100, final=0.05),
        steps=steps,
        batch=32,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
