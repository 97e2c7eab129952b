"""Configs: one file each, with its paper, its command and its values; here the parts that the labelled `*_nano` share."""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.labelled.sources import examples_from, held_out_from
from lm.data.tokenizer.tokenizer import Vocabulary, WordPiece
from lm.data.types import Task
from lm.models.transformer import Transformer
from lm.objectives.base import Objective


def small(context: int = 128, causal: bool = False) -> Transformer:
    """Return the network of the labelled `*_nano` configs: 3 x 128, with learned positions."""
    return Transformer(
        context=context, width=128, depth=3, heads=4, types=0 if causal else 2, activation="gelu", init_positions=0.02,
        dropout=0.1, attention_dropout=0.1, unroll=0,
    )  # fmt: skip


def examples(
    task: Task, text: str | None, data: str | None, held_out: str | None, field: str = "text", language: str = "",
    tokenizer: Vocabulary | None = None,
) -> Data:  # fmt: skip
    """Return the data of the labelled `*_nano` configs, by their arguments."""
    source, validation = examples_from(text, task, data, field, language), held_out_from(held_out, task, field, language)
    return Data(source=source, validation=validation, tokenizer=tokenizer or WordPiece(vocab=4096))


def finetuning(objective: Objective, data: Data, start: str | None, steps: int, lr: float = 5e-5, every: int = 200) -> Config:
    """Return the recipe of the labelled `*_nano` configs: AdamW, at the rate `lr` where there is a start."""
    return Config(
        objective=objective,
        data=data,
        optimizer=Optimizer(lr=lr if start else 1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=every, save=every, sample=every),
    )
