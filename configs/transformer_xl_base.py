"""Transformer-XL base (Dai et al. 2019; the authors' run_wt103_base.sh and run_enwik8_base.sh).

    python -m lm.main --config=configs/transformer_xl_base.py:text='wiki.train.tokens'
    python -m lm.main --config=configs/transformer_xl_base.py:corpus=enwik8,text=enwik8

"wt103": 16 x 410, 151 M parameters with WikiText-103's 267,735 words; test perplexity 24.0 after 200,000 steps. Words are
numbered by falling frequency, as a vocabulary file of one's own has them (`tokenizer=`); without one the config learns
byte pairs, for which the clusters still hold, as far as common pairs are found first. "enwik8": 12 x 512, 41 M, bytes;
1.06 bits a byte after 400,000 steps. Held-out text is read with a longer memory, and clamped distances. The corpora are
one text, whose documents the memory runs through.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Pretrained
from lm.models.presets import TRANSFORMER_XL_BASE, TRANSFORMER_XL_ENWIK8
from lm.objectives.recurrent import Lengths, Recurrent


def config(
    text: str | None = None,
    data: str | None = None,
    corpus: Literal["wt103", "enwik8"] = "wt103",
    tokenizer: str | None = None,
) -> Config:
    words = corpus == "wt103"
    if words:
        model, lengths = TRANSFORMER_XL_BASE, Lengths(context=64, memory=640, clamp=400)
        vocabulary = Pretrained(tokenizer) if tokenizer else BytePair(vocab=model.vocab)
    else:
        model, lengths = TRANSFORMER_XL_ENWIK8, Lengths(context=80, memory=2100, clamp=820)
        vocabulary = Bytes()
    return Config(
        objective=Recurrent(model=replace(model, dtype="bfloat16"), evaluation=lengths),
        data=Data(source=source_from(text, data), tokenizer=vocabulary, validation=0.005 if words else 0.05, packing="windows"),
        optimizer=Optimizer(lr=2.5e-4, clip=0.25),
        schedule=Schedule(shape="cosine"),
        steps=200_000 if words else 400_000,
        batch=60 if words else 22,
        seed=1111,
        every=Every(log=200, evaluate=4000, save=4000, sample=20_000),
    )
