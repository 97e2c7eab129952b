"""Heads of fine-tuned models, family by family: which of our linear layers is which of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm.convert.families.llama import CLASSES
from lm.data.rows.templates import Style
from lm.models.pooling import Inner

SEQUENCE, TOKEN, ANSWER, CHOICE = "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"


@dataclass(frozen=True)
class Layout:
    """A family's head for a task.

    `layers`: our linear layers to theirs, the one that scores last; `bias` is its. `inner`, `activation` and `pool` are
    what `lm.objectives.finetune.network.Head` says of it. `rate`: their fields for the dropout before it, the first is written;
    `usual` where none is there. `fixed`: fields that tell other heads of theirs from this one. `root`: what the network's
    names begin with in such a file, where that is not the family's prefix. `name` ends the class where the task alone
    does not.
    """

    layers: Mapping[str, str]
    inner: Inner = "none"
    activation: str = "tanh"
    pool: str = "first"
    bias: bool = True
    rate: tuple[str, ...] = ()
    usual: float = 0.1
    fixed: Mapping[str, Any] = field(default_factory=dict)
    root: str | None = None
    name: str = ""


@dataclass(frozen=True)
class Kind:
    """A model_type: the beginning of its classes' names, how texts are framed, and its layouts by task."""

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
    """BERT's heads: the pooler of pre-training under a label, the states themselves under tags and answers."""
    pooled = Layout({"pooler/dense": pooler, **LAST}, inner="pooler", rate=rate)
    return {SEQUENCE: pooled, TOKEN: Layout(LAST, rate=rate), ANSWER: Layout(SPAN), CHOICE: pooled}


def summary(activation: str, pool: str, ours: str) -> Layout:
    """The dense layer of `sequence_summary` and the scores behind it."""
    fixed = {"summary_type": pool, "summary_use_proj": True, "summary_activation": activation}
    layers = {"summary": "sequence_summary.summary", "classifier": ours}
    return Layout(layers, inner="summary", activation=activation, pool=pool, rate=("summary_last_dropout",), fixed=fixed)


def distilbert() -> dict[str, Layout]:
    layers = {"summary": "pre_classifier", **LAST}
    pooled = Layout(layers, inner="summary", activation="relu", rate=("seq_classif_dropout",), usual=0.2)
    tags = Layout(LAST, rate=("dropout",))
    return {SEQUENCE: pooled, TOKEN: tags, ANSWER: Layout(SPAN, rate=("qa_dropout",)), CHOICE: pooled}


def decoder(token: str, root: str | None, *tasks: str) -> dict[str, Layout]:
    """Heads on causal networks: the last token's state has the label. `root`: of files with answers."""
    tags = Layout({"classifier": token}, rate=("classifier_dropout", "hidden_dropout"))
    first = Layout({"classifier": "score"}, pool="last", bias=False)
    found = {SEQUENCE: first, TOKEN: tags, ANSWER: Layout(SPAN, root=root)}
    return {task: found[task] for task in (SEQUENCE, *tasks)}


def pair(root: str | None = None) -> dict[str, Layout]:
    """Heads of encoder-decoders: the state of the decoder's last token, or all of its states."""
    layers = {"classifier/dense": "classification_head.dense", "classifier/out": "classification_head.out_proj"}
    sequence = Layout(layers, inner="dense", pool="last", rate=("classifier_dropout",), usual=0.0, root=root)
    return {SEQUENCE: sequence, ANSWER: Layout(SPAN)}


ROBERTA = encoder("roberta.pooler.dense")
ROBERTA[SEQUENCE] = Layout(PARTS, inner="dense", rate=BEFORE)
ELECTRA = encoder("")
ELECTRA[SEQUENCE] = Layout(PARTS, inner="dense", activation="gelu", rate=BEFORE)
ELECTRA[CHOICE] = summary("gelu", "first", "classifier")
XLNET = {
    SEQUENCE: summary("tanh", "last", "logits_proj"),
    TOKEN: Layout(LAST),
    ANSWER: Layout(SPAN, name="QuestionAnsweringSimple"),
}
BY_TYPE: dict[str, Kind] = {
    "bert": Kind("Bert", "bert", encoder("bert.pooler.dense")),
    "ernie": Kind("Ernie", "bert", encoder("ernie.pooler.dense")),
    "roberta": Kind("Roberta", "roberta", ROBERTA),
    "albert": Kind("Albert", "bert", encoder("albert.pooler", ("classifier_dropout_prob",))),
    "distilbert": Kind("DistilBert", "bert", distilbert()),
    "electra": Kind("Electra", "bert", ELECTRA),
    "xlnet": Kind("XLNet", "xlnet", XLNET),
    "gpt2": Kind("GPT2", "decoder", decoder("classifier", None, TOKEN, ANSWER)),
    "openai-gpt": Kind("OpenAIGPT", "decoder", decoder("", None)),
    **{
        kind: Kind(name, "decoder", decoder("score", None if kind == "mistral" else "transformer.", TOKEN, ANSWER))
        for kind, name in CLASSES.items()
    },
    "gemma": Kind("Gemma", "decoder", decoder("score", None, TOKEN)),
    "gemma2": Kind("Gemma2", "decoder", decoder("score", None, TOKEN)),
    "gemma3_text": Kind("Gemma3Text", "decoder", decoder("", None)),
    "bart": Kind("Bart", "roberta", pair()),
    "mbart": Kind("MBart", "roberta", pair()),
    "t5": Kind("T5", "t5", pair("transformer.")),
    "mt5": Kind("MT5", "t5", pair("transformer.")),
}
