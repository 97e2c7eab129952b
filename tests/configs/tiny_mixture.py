"""Next tokens and masked tokens on one trunk of 2 x 16."""

from lm.config import Config, Data, Every, Optimizer
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.masked import Masked
from lm.objectives.mixture import Multitask, Part


def config(text: str | None = None, data: str | None = None, take: str = "all") -> Config:
    model = Transformer(
        context=32, width=16, depth=2, heads=2, transform=True, head_bias=True, dropout=0.1, attention_dropout=0.1
    )
    return Config(
        objective=Multitask(
            parts=(
                Part(name="causal", objective=Causal(model=model)),
                Part(name="masked", objective=Masked(model=model, sentence="none"), weight=0.5),
            ),
            take=take,
        ),
        data=Data(source=source_from(text, data), tokenizer=Bytes(), validation=0.1 if text else 0.005),
        optimizer=Optimizer(lr=1e-2),
        steps=3,
        batch=8,
        every=Every(log=1, evaluate=3, save=3),
    )
