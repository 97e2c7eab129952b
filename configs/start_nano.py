"""Small networks to start fine-tuning from, pre-trained in ten minutes on two CPU cores on text of one's own.

    python -m lm.main --config=configs/start_nano.py:text=reviews.jsonl --workdir=runs/start
    python -m lm.main --config=configs/start_nano.py:kind=denoise,text=pairs.jsonl --workdir=runs/start_pairs
    python -m lm.main --config=configs/classify_imdb.py:start=runs/start

`kind` is what the task needs: an encoder (masked, RoBERTa's way), an encoder-decoder (denoise, BART) or a decoder (causal).
The configs of fine-tuning on real data take the same shapes from here for their networks from scratch. Rotary positions and
Muon are what learns in minutes: with a table of positions masked tokens stay at their frequencies for 700 steps.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Every, Optimizer, Schedule
from lm.data.prepare import Data
from lm.data.sources import source_from
from lm.data.tokenizers import BytePair, WordPiece
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.denoise import Denoise
from lm.objectives.masked import Masked

DECODER = Transformer(context=128, width=128, depth=3, heads=4, activation="gelu", positions="rotary", unroll=0)
ENCODER = replace(DECODER, types=2, transform=True, head_bias=True, init_positions=0.02, init_truncate=True)
PAIR = twice(replace(DECODER, depth=2))


def tuned(model: Transformer, context: int = 256) -> Transformer:
    """Give a shape as fine-tuning wants it: longer texts, and dropout."""
    return replace(model, context=context, dropout=0.1, attention_dropout=0.1)


def config(
    text: str | None = None,
    data: str | None = None,
    kind: Literal["masked", "denoise", "causal"] = "masked",
    vocab: int = 8192,
    steps: int = 1200,
) -> Config:
    objectives = {
        "masked": lambda: Masked(model=ENCODER, count="stochastic", specials=True, low=4),
        "denoise": lambda: Denoise(model=PAIR),
        "causal": lambda: Causal(model=DECODER),
    }
    tokenizer = WordPiece(vocab=vocab) if kind == "masked" else BytePair(vocab=vocab)
    return Config(
        objective=objectives[kind](),
        data=Data(source=source_from(text, data), tokenizer=tokenizer, validation=0.01),
        optimizer=Optimizer(name="muon", lr=4e-3, betas=(0.9, 0.98), eps=1e-6, decay=0.1, clip=1.0),
        schedule=Schedule(shape="linear", warmup=100),
        steps=steps,
        batch=32 if kind == "denoise" else 64,  # each of whose tokens is read twice
        every=Every(log=50, evaluate=600, save=300, sample=600),
    )
