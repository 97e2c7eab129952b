"""Heads of fine-tuned models: which of our linear layers is which of theirs, by task; families take theirs from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lm.data.rows.templates import Style
from lm.models.pooling import Inner

SEQUENCE, TOKEN, ANSWER, CHOICE = "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"

Activation = Literal["tanh", "gelu", "relu"]
Pool = Literal["first", "last", "mean"]


@dataclass(frozen=True)
class Layout:
    """A family's head for a task.

    `layers`: our linear layers to theirs, the scoring one last, with `bias` or not. `inner`, `activation`, `pool`: fields
    of `lm.objectives.finetune.network.Head`. `rate`: their fields for the dropout before it, the first is written;
    `usual`: its value where none is present. `fixed`: fields that distinguish their variants of the head. `root`: the
    prefix of the network's tensors in such a file where it is not the family's. `name`: end of the class's name where
    the task alone does not make it.
    """

    layers: Mapping[str, str]
    inner: Inner = "none"
    activation: Activation = "tanh"
    pool: Pool = "first"
    bias: bool = True
    rate: tuple[str, ...] = ()
    usual: float = 0.1
    fixed: Mapping[str, Any] = field(default_factory=dict)
    root: str | None = None
    name: str = ""


@dataclass(frozen=True)
class Heads:
    """The heads of a family: start of its classes' names, template of its texts, and a layout for each task."""

    name: str
    style: Style
    layouts: Mapping[str, Layout]

    @property
    def causal(self) -> bool:
        return self.style == "decoder"

    def architecture(self, task: str) -> str:
        return f"{self.name}For{self.layouts[task].name or task}"


LAST, SPAN = {"classifier": "classifier"}, {"answer": "qa_outputs"}
BEFORE = ("classifier_dropout", "hidden_dropout_prob")
PARTS = {"classifier/dense": "classifier.dense", "classifier/out": "classifier.out_proj"}


def encoder(pooler: str, rate: tuple[str, ...] = BEFORE) -> dict[str, Layout]:
    """BERT's heads: the pooler of pre-training for labels, the states themselves for tags and answers."""
    pooled = Layout({"pooler/dense": pooler, **LAST}, inner="pooler", rate=rate)
    return {SEQUENCE: pooled, TOKEN: Layout(LAST, rate=rate), ANSWER: Layout(SPAN), CHOICE: pooled}


def summary(activation: Activation, pool: Pool, ours: str) -> Layout:
    """`sequence_summary`'s dense layer, then the scores."""
    fixed = {"summary_type": pool, "summary_use_proj": True, "summary_activation": activation}
    layers = {"summary": "sequence_summary.summary", "classifier": ours}
    return Layout(layers, inner="summary", activation=activation, pool=pool, rate=("summary_last_dropout",), fixed=fixed)


def decoder(token: str, root: str | None, *tasks: str) -> dict[str, Layout]:
    """Heads on causal networks: labels are scored from the last token's state. `root`: of files with answers."""
    tags = Layout({"classifier": token}, rate=("classifier_dropout", "hidden_dropout"))
    labels = Layout({"classifier": "score"}, pool="last", bias=False)
    layouts = {SEQUENCE: labels, TOKEN: tags, ANSWER: Layout(SPAN, root=root)}
    return {task: layouts[task] for task in (SEQUENCE, *tasks)}


def pair(root: str | None = None) -> dict[str, Layout]:
    """Heads of encoder-decoders: the state of the decoder's last token, or all of its states."""
    layers = {"classifier/dense": "classification_head.dense", "classifier/out": "classification_head.out_proj"}
    sequence = Layout(layers, inner="dense", pool="last", rate=("classifier_dropout",), usual=0.0, root=root)
    return {SEQUENCE: sequence, ANSWER: Layout(SPAN)}
