"""UL2 on a decoder alone that learns in three minutes on two CPU cores: 3 x 192, on Python's documentation.

    python -m lm.objectives.prefix
    python -m lm.main --config=configs/prefix_nano.py:denoisers=split
    python -m lm.main --config=configs/prefix_nano.py:text=my_text.txt

Tay et al. 2022: seven denoisers, told by a mode token; a row of 128 holds the inputs, which see each other, and then the
targets. `denoisers=split` is the plain prefix-LM. Look at eval/validation/accuracy: the share of the targets that are
right, given the inputs and the targets before them.
"""

from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.corruption.spans import Denoiser
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.transformer import Transformer
from lm.objectives.prefix import Prefix, ul2


def config(
    text: str | None = None, data: str | None = None, steps: int = 900, denoisers: Literal["ul2", "split"] = "ul2"
) -> Config:
    model = Transformer(
        context=128, width=192, depth=3, heads=6, mlp=512, activation="swiglu", norm="rms", eps=1e-6,
        positions="rotary", bias=False, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Prefix(model=model, denoisers=ul2() if denoisers == "ul2" else (Denoiser(kind="split"),)),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=2048), packing="windows"),
        optimizer=Optimizer(name="muon", lr=2e-3, momentum=0.95, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=100, final=0.05),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
