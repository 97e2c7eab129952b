"""DialoGPT: GPT-2's shape on dialogues (Zhang et al. 2020), turn by turn, each turn ended by the separator.

    python -m lm.main --config=configs/dialogpt_small.py:text=dialogues.jsonl --config.start=runs/gpt_small

A line of the file is {"turns": ["How are you?", "Fine, and you?", ...]}; without `text=` every document of the
interpreter's documentation is a dialogue of one turn. `ask=responses` leaves the first turn out of the loss, as the
released code does. The paper goes on from GPT-2's weights; the rate is its demo's 1e-5 under Noam's rule, at the peak
1e-5 x 10^4 x width^-0.5 x 4000^-0.5, in batches of 512 rows. Sizes of the paper: small, medium, large.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.text.files import JsonLines
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import GPT2_LARGE, GPT2_MEDIUM, GPT2_SMALL
from lm.objectives.causal import Causal

SHAPES = {"small": GPT2_SMALL, "medium": GPT2_MEDIUM, "large": GPT2_LARGE}


def config(
    text: str | None = None,
    tokenizer: str | None = None,
    size: Literal["small", "medium", "large"] = "small",
    ask: Literal["all", "responses"] = "all",
) -> Config:
    model = replace(SHAPES[size], pad_vocab=128, dropout=0.1, attention_dropout=0.1, dtype="bfloat16", remat="dots")
    return Config(
        objective=Causal(model=model, dialogue=ask),
        data=Data(
            source=JsonLines(path=text, fields=("turns",)) if text else source_from(),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=50257),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=0.1 * (model.width * 4000) ** -0.5, betas=(0.9, 0.999), clip=1.0),
        schedule=Schedule(shape="rsqrt", warmup=4000),
        steps=100_000,
        batch=512,
        micro_batches=32,
        every=Every(log=10, evaluate=1000, save=1000),
    )
