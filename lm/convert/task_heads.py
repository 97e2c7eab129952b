"""Fine-tuned models in and out: the objective that a file's `architectures` name, and the file of an objective.

| task | objective | our leaves beside the network's |
|---|---|---|
| SequenceClassification | Classify | (pooler/dense or summary) and classifier; classifier/dense and classifier/out |
| TokenClassification | Tag | classifier |
| QuestionAnswering | Extract | answer |
| MultipleChoice | Choose | as of SequenceClassification, one score |

The family's class declares the layouts of its heads; the vocabulary's parameters are in no such file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lm.convert.family import Family, Fields, Network, architecture
from lm.convert.layouts import ANSWER, CHOICE, SEQUENCE, TOKEN, Layout
from lm.convert.rules import Rule, dense
from lm.data.rows.templates import Frame
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.base import Objective
from lm.objectives.choice import Choose
from lm.objectives.classify import Classify
from lm.objectives.extract import Extract
from lm.objectives.finetune import network
from lm.objectives.finetune.network import Head, Rows
from lm.objectives.tag import Tag
from lm.training.parameters import LAST, alike

TASKS = (SEQUENCE, TOKEN, ANSWER, CHOICE)
# Other tensors of their files: heads of pre-training and of other tasks, vectors that no task reads.
OTHERS = (
    r"^(cls|lm_head|predictions|sop_classifier|generator_predictions|generator_lm_head|discriminator_predictions"
    r"|vocab_transform|vocab_layer_norm|vocab_projector|lm_loss|score|classifier|pre_classifier|qa_outputs"
    r"|logits_proj|sequence_summary|classification_head|start_logits|end_logits|answer_class)\.|(^|\.)pooler\.|mask_emb$|^(model\.)?final_logits_bias$"
)
KINDS = {"one": "single_label_classification", "several": "multi_label_classification", "number": "regression"}
PLAIN: dict[str, Any] = {"tied": True, "head_bias": False, "logit_scale": 1.0, "logit_cap": 0.0}


def tasked(family: Family, settings: Mapping[str, Any], wanted: str = "") -> Family:
    """Return the family under the head of the task `wanted`, which the file may lack, or of that in config.json.

    Raises UserError for an unknown head of a known task.
    """
    if family.heads is None:
        return family
    head, layouts = architecture(settings), family.heads.layouts
    known = {family.heads.architecture(task): task for task in layouts}
    if wanted in layouts:
        return Tasked(family, wanted, there=known.get(head) == wanted)
    if head in known:
        return Tasked(family, known[head])
    odd = re.search(f"For({'|'.join(TASKS)})", head)
    check(not odd, f"config.json: no counterpart here for the head of {head}; known of its family: {', '.join(known)}")
    return family


def candidates(families: list[Family], objective: Objective) -> list[Family]:
    """Return the families with a head for an objective's task and direction of reading; all of them without a task.

    Raises UserError for a mix of layers: a folder without it would silently score otherwise.
    """
    check(
        objective.rows is None or not objective.rows.mix,
        "objective.rows.mix: transformers' heads read the last layer, not a mix of layers; a run with rows.mix=False can be "
        "exported",
    )
    task = objective.task
    if not task:
        return families
    fitting = (family for family in families if family.heads and family.heads.causal == objective.rows.causal)
    return [Tasked(family, task) for family in fitting if task in family.heads.layouts]


@dataclass(frozen=True)
class Tasked(Family):
    """A family under the head of a task. `there`: the file has that head; else it may have another, which is left out."""

    family: Family
    task: str
    there: bool = True

    name = property(lambda self: self.family.name)
    heads = property(lambda self: self.family.heads)
    copies = property(lambda self: self.family.copies)
    buffers = property(lambda self: self.family.buffers)

    @property
    def layout(self) -> Layout:
        return self.heads.layouts[self.task]

    @property
    def prefix(self) -> str:
        root = self.layout.root if self.there else None
        return self.family.prefix if root is None else root

    @property
    def ignored(self) -> str:
        return "|".join(filter(None, (self.family.ignored, OTHERS)))

    def objective(self, settings: Mapping[str, Any]) -> Any:
        """Return the objective of the task, with the labels of config.json."""
        fields, kind, layout = Fields(settings), self.heads, self.layout
        named = settings if self.there else {}  # else the labels are those of another head
        if self.there:
            fields.refuse(**layout.fixed)
        # Without the class's name, from which families derive pre-training heads that a task's file lacks.
        model = self.family.objective({**settings, "architectures": []}).model
        rows = Rows(causal=kind.causal, pack=kind.style != "xlnet")
        rate = float(fields.get(*layout.rate, default=layout.usual)) if layout.rate else 0.0
        head = Head(inner=layout.inner, pool=layout.pool, activation=layout.activation, dropout=rate)
        if self.task == SEQUENCE:
            problem = problem_of(named)
            labels = () if problem == "number" else labels_of(named)
            objective: Any = Classify(model=model, rows=rows, head=head, kind=problem, labels=labels)
        elif self.task == CHOICE:
            objective = Choose(model=model, rows=rows, head=head)
        elif self.task == TOKEN:
            objective = Tag(model=model, rows=rows, dropout=rate, labels=labels_of(named))
        else:
            objective = Extract(model=model, rows=rows, dropout=rate)
        return replace(objective, frame=Frame(None, kind.style))  # until a tokenizer is at hand

    def settings(self, objective: Any) -> dict[str, Any]:
        self.check_head(objective)
        found, frame, layout = self.family.settings(Network(objective.model)), objective.frame, self.layout
        found |= {"architectures": [self.heads.architecture(self.task)], **layout.fixed}
        if layout.rate and layout.rate[0] not in found:
            found[layout.rate[0]] = objective.dropout if objective.head is None else objective.head.dropout
        if self.task in (SEQUENCE, TOKEN):
            labels = objective.labels or ("LABEL_0",)
            found["id2label"] = {str(i): name for i, name in enumerate(labels)}
            found["label2id"] = {name: i for i, name in enumerate(labels)}
        if self.task == SEQUENCE:
            found["problem_type"] = KINDS[objective.kind]
        # Their class pools at the last end token, which it finds by this id.
        if isinstance(objective.model, EncoderDecoder) and frame.tokenizer is not None:
            found |= {"eos_token_id": frame.tokenizer.special_id("[SEP]"), "decoder_start_token_id": frame.start}
        return found

    def check_head(self, objective: Any) -> None:
        """Raise UserError for a head that theirs does not compute."""
        layout = self.layout
        if self.task not in (SEQUENCE, CHOICE):
            return
        scores = objective.scores
        ours = scores.inner, scores.activation, objective.pool, scores.bias
        theirs = layout.inner, layout.activation if scores.inner in ("dense", "summary") else ours[1], layout.pool, layout.bias
        shown = (f"inner={inner}, activation={act}, pool={pool}, bias={bias}" for inner, act, pool, bias in (theirs, ours))
        check(ours == theirs, "its head is {}; this one is {}".format(*shown))

    def rules(self, objective: Any) -> list[Rule]:
        """Return the network's table without the vocabulary's parameters, and the head's."""
        layout, unused = self.layout, tuple(f"{name}/" for name in network.VOCABULARY)
        rules = self.family.rules(Network(network.bare(objective.model)))
        rules = [rule for rule in rules if rule.ours not in network.VOCABULARY and not rule.ours.startswith(unused)]
        if self.prefix != self.family.prefix:
            rules = [rule._replace(theirs=self.prefix + rule.theirs.removeprefix(self.family.prefix)) for rule in rules]
        # From a file with another head only the pooler, which pre-training trained, is of use.
        last = list(layout.layers)[-1]
        layers = [pair for pair in layout.layers.items() if self.there or pair[0].startswith("pooler/")]
        return [*rules, *(rule for ours, theirs in layers for rule in dense(ours, theirs, bias=layout.bias or ours != last))]

    def fitted(self, objective: Any, leaves: dict[str, Any], pad: int | None) -> tuple[Any, dict[str, Any]]:
        return self.family.fitted(objective, leaves, pad)

    def unread(self, objective: Any) -> dict[str, np.ndarray]:
        return self.family.unread(objective)


def labels_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes, as many as `Folder` counted; LABEL_7 where config.json has none."""
    given = {str(i): str(name) for i, name in (settings.get("id2label") or {}).items()}
    count = settings.get("num_labels") or len(given) or 2
    unnamed = tuple(f"LABEL_{i}" for i in range(count))
    names = tuple(given.get(str(i), name) for i, name in enumerate(unnamed))
    # Two classes of one name could not be told apart in a text of labels, nor matched with another run's.
    return names if len(set(names)) == count else unnamed


def problem_of(settings: Mapping[str, Any]) -> Literal["one", "several", "number"]:
    """Return the kind of labels: that of config.json, else by their number."""
    count, problem = len(labels_of(settings)), settings.get("problem_type")
    problem = problem or (KINDS["number"] if count == 1 else KINDS["one"])
    kind = Fields({"problem_type": problem}).one_of("problem_type", {theirs: ours for ours, theirs in KINDS.items()})
    check(kind != "number" or count == 1, f"config.json: problem_type={problem} of {count} numbers has no counterpart here")
    return kind


def headless(objective: Objective) -> bool:
    """Whether no vocabulary head follows the network: tasks, ELECTRA's discriminator, sentence embeddings."""
    return bool(objective.task) or objective.headless


def compared(model: Any, without_head: bool) -> Any:
    """Return the model with plain values for the fields that config.json need not restore: the vocabulary head's."""
    if not without_head or not isinstance(model, Transformer | EncoderDecoder):
        return model
    if isinstance(model, Transformer):
        return replace(model, **PLAIN, transform=True)
    return replace(model, encoder=replace(model.encoder, **PLAIN), decoder=replace(model.decoder, **PLAIN))


def labelled(objective: Any, theirs: Any, leaves: dict[str, Any]) -> dict[str, Any]:
    """Return a folder's leaves with scores in the order of our labels; without the last layer where labels differ."""
    (mine, kind), (other, known) = ((one.labels, one.kind) for one in (objective, theirs))
    last = {name for name in leaves if LAST.fullmatch(name)}
    if alike((mine, kind), (other, known)):
        return leaves
    if kind == known and sorted(mine) == sorted(other):
        # Equal labels in another order: the trained scores are kept, permuted.
        order = np.array([other.index(name) for name in mine])
        return {name: x[..., order] if name in last else x for name, x in leaves.items()}
    return {name: x for name, x in leaves.items() if name not in last}


def known_as(family: Family, model: Any, names: Iterable[str]) -> set[str]:
    """Return our names of a file's tensors where the family's table has them: heads of pre-training that no task has."""
    ours = {rule.theirs: rule.ours for rule in family.rules(Network(model))}
    return {ours.get(name, name) for name in names}


def framed(objective: Any, tokenizer: Tokenizer) -> Any:
    """Resolve a task's objective with its tokenizer, on which its parameters depend."""
    return objective if objective.rows is None else objective.resolve(tokenizer)
