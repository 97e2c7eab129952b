"""One trunk, two objectives: next tokens and masked tokens, half of the steps each; three minutes on two CPU cores.

    python -m lm.objectives.mixture
    python -m lm.main --config=configs/mixture_nano.py:text=my_text.txt,take=all

Liu et al. 2019 (MT-DNN) for sharing all but the heads, Raffel et al. 2020 for drawing one task a step.
"""

from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.masked import Masked
from lm.objectives.mixture import Multitask, Part


def config(text: str | None = None, data: str | None = None, take: Literal["all", "one"] = "one", steps: int = 1600) -> Config:
    model = Transformer(context=128, width=192, depth=4, heads=6, positions="rotary", transform=True, head_bias=True, unroll=0)
    return Config(
        objective=Multitask(
            parts=(
                Part(name="causal", objective=Causal(model=model)),
                Part(name="masked", objective=Masked(model=model, sentence="none")),
            ),
            take=take,
        ),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=2048)),
        optimizer=Optimizer(name="muon", lr=4e-3, betas=(0.9, 0.98), decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=100, final=0.1),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=800, save=800, sample=800),
    )
