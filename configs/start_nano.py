"""Small networks to start fine-tuning from, pre-trained in ten minutes on two CPU cores on text of one's own.

    python -m lm.main --config=configs/start_nano.py:text=reviews.jsonl --workdir=runs/start      # or kind=denoise, kind=causal

`kind` is an encoder (masked, RoBERTa's way), an encoder-decoder (denoise, BART) or a decoder (causal); with `start=RUN` a run
of it goes on with other text. Rotary positions and Muon learn in minutes; with a table of positions masked tokens stay at
their frequencies for 700 steps. Configs on real data take shapes and optimizer from here.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, WordPiece
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.denoise import Denoise
from lm.objectives.masked import Masked
from lm.runs import is_published

DECODER = Transformer(context=128, width=128, depth=3, heads=4, activation="gelu", positions="rotary", unroll=0)
ENCODER = replace(DECODER, types=2, transform=True, head_bias=True, init_positions=0.02, init_truncate=True)
PAIR = twice(replace(DECODER, depth=2))
MASKED = Masked(model=ENCODER, count="stochastic", specials=True, low=4)
OBJECTIVES = {"masked": MASKED, "denoise": Denoise(model=PAIR), "causal": Causal(model=DECODER)}


def tuned(model: Transformer, context: int = 256) -> Transformer:
    """Return a shape for fine-tuning: longer texts, dropout."""
    return replace(model, context=context, dropout=0.1, attention_dropout=0.1)


def tuning(start: str | None, lr: float = 2e-3, gently: float = 1e-3, average: float = 0.0) -> Optimizer:
    """Return AdamW for a published start, else Muon, maybe averaged; at the rate `gently` where there is a start."""
    if start and is_published(start):
        return Optimizer(lr=2e-4, betas=(0.9, 0.999), decay=0.01, clip=1.0)
    return Optimizer(name="muon", lr=gently if start else lr, betas=(0.9, 0.98), decay=0.01, clip=1.0, average=average)


def config(
    text: str | None = None,
    data: str | None = None,
    kind: Literal["masked", "denoise", "causal"] = "masked",
    vocab: int = 8192,
    steps: int = 1200,
    start: str | None = None,
) -> Config:
    tokenizer = WordPiece(vocab=vocab) if kind == "masked" else BytePair(vocab=vocab)
    return Config(
        objective=OBJECTIVES[kind],
        data=Data(source=source_from(text, data), tokenizer=tokenizer, validation=0.01),
        optimizer=Optimizer(name="muon", lr=4e-3, betas=(0.9, 0.98), eps=1e-6, decay=0.1, clip=1.0),
        schedule=Schedule(shape="linear", warmup=100),
        steps=steps,
        batch=64 if kind == "masked" else 32,  # the others are asked for every token
        start=start,
        every=Every(log=50, evaluate=600, save=300, sample=600),
    )
