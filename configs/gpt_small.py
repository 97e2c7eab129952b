"""GPT-2 small (12 x 768, 124 M; Radford et al. 2019), trained as GPT-3 small (Brown et al. 2020, table 2.1 and B).

    python -m lm.main --config=configs/gpt_small.py                            # the interpreter's documentation
    python -m lm.main --config=configs/gpt_small.py:text='corpus/*.txt'        # one's own text
    python -m lm.main --config=configs/gpt_small.py:tokenizer=path/to/gpt2     # GPT-2's own vocabulary

Batches of 0.5 M tokens in 16 micro-batches: fit 40 GB; halve or double `micro_batches` for another device. On a CPU take
configs/gpt_nano.py.
"""

from dataclasses import replace

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import GPT2_SMALL
from lm.objectives.causal import Causal


def config(text: str | None = None, data: str | None = None, tokenizer: str | None = None) -> Config:
    return Config(
        objective=Causal(model=replace(GPT2_SMALL, pad_vocab=128, dtype="bfloat16", remat="dots"), z_loss=1e-4),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=50257),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=6e-4, betas=(0.9, 0.95), decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=715, final=0.1),
        steps=19_073,
        batch=512,
        micro_batches=16,
        every=Every(log=10, evaluate=1000, save=1000, sample=1000),
        samples=("", "The function returns"),
    )
