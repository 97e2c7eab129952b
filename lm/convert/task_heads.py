"""Fine-tuned models in and out: the objective that a file's `architectures` name, and the file of an objective.

| task | objective | our leaves beside the network's |
|---|---|---|
| SequenceClassification | Classify | (pooler/dense or summary) and classifier; classifier/dense and classifier/out |
| TokenClassification | Tag | classifier |
| QuestionAnswering | Extract | answer |
| MultipleChoice | Choose | as of SequenceClassification, one score |

A family's own file says how its network lies, `heads` how its heads do; what serves the vocabulary is in no such file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm.convert.family import Family, Fields, architecture
from lm.convert.layouts import ANSWER, BY_TYPE, CHOICE, SEQUENCE, TOKEN, Layout
from lm.convert.rules import Rule, dense
from lm.data.rows.templates import Frame
from lm.errors import check
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.choice import Choose
from lm.objectives.classify import Classify
from lm.objectives.extract import Extract
from lm.objectives.finetune import network
from lm.objectives.finetune.network import Head, Rows
from lm.objectives.tag import Tag
from lm.training.parameters import LAST, alike

TASKS = (SEQUENCE, TOKEN, ANSWER, CHOICE)
# What their files may have besides: heads of pre-training and of other tasks, vectors that no task reads.
OTHERS = (
    r"^(cls|lm_head|predictions|sop_classifier|generator_predictions|generator_lm_head|discriminator_predictions"
    r"|vocab_transform|vocab_layer_norm|vocab_projector|lm_loss|score|classifier|pre_classifier|qa_outputs"
    r"|logits_proj|sequence_summary|classification_head|start_logits|end_logits|answer_class)\.|(^|\.)pooler\.|mask_emb$|^(model\.)?final_logits_bias$"
)
KINDS = {"one": "single_label_classification", "several": "multi_label_classification", "number": "regression"}
PLAIN = {"tied": True, "head_bias": False, "logit_scale": 1.0, "logit_cap": 0.0}


def tasked(family: Family, settings: Mapping[str, Any], wanted: str = "") -> Family:
    """Give the family as it lies under the task's head that config.json names, or under that of `wanted`.

    The file may lack that of `wanted`. Raises UserError for another head of a task that is known here.
    """
    said, name = architecture(settings), str(settings["model_type"])
    if name not in BY_TYPE:
        return family
    kind = BY_TYPE[name]
    known = {kind.architecture(task): task for task in kind.layouts}
    if wanted in kind.layouts:
        return Tasked(family, name, wanted, there=known.get(said) == wanted)
    if said in known:
        return Tasked(family, name, known[said])
    odd = re.search(f"For({'|'.join(TASKS)})", said)
    check(not odd, f"config.json: no counterpart here for the head of {said}; known of its family: {', '.join(known)}")
    return family


def candidates(families: tuple[Family, ...], objective: Any) -> tuple[Family, ...]:
    """Give the families with a head for an objective's task and its way to read; themselves where it has none.

    Raises UserError for a mix of layers: a folder without it would give other scores and not say so.
    """
    check(
        objective.rows is None or not objective.rows.mix,
        "objective.rows.mix: transformers' heads read the last layer, not a mix of layers; a run with rows.mix=False can be "
        "exported",
    )
    task = objective.task
    if not task:
        return families
    pairs = ((family, kind) for family in families for kind in family.types if kind in BY_TYPE)
    pairs = ((family, kind) for family, kind in pairs if BY_TYPE[kind].causal == objective.rows.causal)
    return tuple(Tasked(*pair, task) for pair in pairs if task in BY_TYPE[pair[1]].layouts)


@dataclass(frozen=True)
class Network:
    """What the families' own files ask of an objective, where only its network counts."""

    model: Any
    sentence: str = "none"
    reuse: int = 0
    end: int | None = None
    pad: int | None = None


@dataclass(frozen=True)
class Tasked:
    """A family under the head of a task. `there`: the file has that head; else it may have another, which is left out."""

    family: Family
    kind: str
    task: str
    there: bool = True

    @property
    def types(self) -> tuple[str, ...]:
        return (self.kind,)

    @property
    def layout(self) -> Layout:
        return BY_TYPE[self.kind].layouts[self.task]

    @property
    def prefix(self) -> str:
        root = self.layout.root if self.there else None
        return self.family.prefix if root is None else root

    @property
    def ignored(self) -> str:
        return f"{self.family.ignored}|{OTHERS}"

    def objective(self, settings: Mapping[str, Any]) -> Any:
        """Make the objective of the task, its labels as config.json names them, as many as there are."""
        fields, kind, layout = Fields(settings), BY_TYPE[self.kind], self.layout
        told = settings if self.there else {}  # else they are those of another head
        if self.there:
            fields.refuse(**layout.fixed)
        model = self.family.objective({**settings, "architectures": []}).model
        rows = Rows(causal=kind.causal, pack=kind.style != "xlnet")
        rate = float(fields.get(*layout.rate, default=layout.usual)) if layout.rate else 0.0
        head = Head(inner=layout.inner, pool=layout.pool, activation=layout.activation, dropout=rate)
        if self.task == SEQUENCE:
            labels, problem = labels_of(told), problem_of(told)
            found: Any = Classify(model=model, rows=rows, head=head, kind=problem, labels=() if problem == "number" else labels)
        elif self.task == CHOICE:
            found = Choose(model=model, rows=rows, head=head)
        elif self.task == TOKEN:
            found = Tag(model=model, rows=rows, dropout=rate, labels=labels_of(told))
        else:
            found = Extract(model=model, rows=rows, dropout=rate)
        return replace(found, frame=Frame(None, kind.style))  # until a tokenizer is at hand

    def settings(self, objective: Any) -> dict[str, Any]:
        self.check_head(objective)
        found, frame, layout = self.family.settings(Network(objective.model)), objective.frame, self.layout
        check(found["model_type"] == self.kind, f"the network is that of {found['model_type']}")
        found |= {"architectures": [BY_TYPE[self.kind].architecture(self.task)], **layout.fixed}
        if layout.rate and layout.rate[0] not in found:
            found[layout.rate[0]] = objective.dropout if objective.head is None else objective.head.dropout
        if self.task in (SEQUENCE, TOKEN):
            labels = objective.labels or ("LABEL_0",)
            found["id2label"] = {str(i): name for i, name in enumerate(labels)}
            found["label2id"] = {name: i for i, name in enumerate(labels)}
        if self.task == SEQUENCE:
            found["problem_type"] = KINDS[objective.kind]
        if isinstance(objective.model, EncoderDecoder) and frame.tokenizer is not None:
            found |= {"eos_token_id": frame.tokenizer.special_id("[SEP]"), "decoder_start_token_id": frame.start}
        return found

    def check_head(self, objective: Any) -> None:
        """Raise UserError where theirs computes something else."""
        layout = self.layout
        if self.task not in (SEQUENCE, CHOICE):
            return
        scores = objective.scores
        ours = scores.inner, scores.activation, objective.pool, scores.bias
        theirs = layout.inner, layout.activation if scores.inner in ("dense", "summary") else ours[1], layout.pool, layout.bias
        shown = (f"inner={inner}, activation={act}, pool={pool}, bias={bias}" for inner, act, pool, bias in (theirs, ours))
        check(ours == theirs, "its head is {}; this one is {}".format(*shown))

    def rules(self, objective: Any) -> list[Rule]:
        """Give the network's table, without what serves the vocabulary, and the head's."""
        layout, unused = self.layout, tuple(f"{name}/" for name in network.VOCABULARY)
        found = self.family.rules(Network(network.bare(objective.model)))
        found = [rule for rule in found if rule.ours not in network.VOCABULARY and not rule.ours.startswith(unused)]
        if self.prefix != self.family.prefix:
            found = [rule._replace(theirs=self.prefix + rule.theirs.removeprefix(self.family.prefix)) for rule in found]
        last = list(layout.layers)[-1]
        layers = [pair for pair in layout.layers.items() if self.there or pair[0].startswith("pooler/")]
        return [*found, *(rule for ours, theirs in layers for rule in dense(ours, theirs, bias=layout.bias or ours != last))]


def labels_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the classes, as many as `Folder` counted; LABEL_7 is one that config.json does not name."""
    given = {str(i): str(name) for i, name in (settings.get("id2label") or {}).items()}
    count = settings.get("num_labels") or len(given) or 2
    found = tuple(given.get(str(i), f"LABEL_{i}") for i in range(count))
    return found if len(set(found)) == count else tuple(f"LABEL_{i}" for i in range(count))


def problem_of(settings: Mapping[str, Any]) -> str:
    """Say what kind of label it is: as config.json does, else by how many there are."""
    count, said = len(labels_of(settings)), settings.get("problem_type")
    said = said or (KINDS["number"] if count == 1 else KINDS["one"])
    found = Fields({"problem_type": said}).one_of("problem_type", {theirs: ours for ours, theirs in KINDS.items()})
    check(found != "number" or count == 1, f"config.json: problem_type={said} of {count} numbers has no counterpart here")
    return found


def headless(objective: Any) -> bool:
    """Tell whether nothing reads the network through a vocabulary's head: tasks, ELECTRA's discriminator, embeddings."""
    return bool(objective.task) or objective.headless


def compared(model: Any, without_head: bool) -> Any:
    """Give a model as far as its config.json must bring it back: perhaps without what serves a vocabulary."""
    if not without_head or not isinstance(model, Transformer | EncoderDecoder):
        return model
    if isinstance(model, Transformer):
        return replace(model, **PLAIN, transform=True)
    return replace(model, encoder=replace(model.encoder, **PLAIN), decoder=replace(model.decoder, **PLAIN))


def remodelled(objective: Any, model: Any) -> Any:
    """Copy an objective with another model."""
    return replace(objective, model=model)


def labelled(objective: Any, theirs: Any, leaves: dict[str, Any]) -> dict[str, Any]:
    """Give a folder's leaves with our labels' scores in our order; without the last layer where its labels are others."""
    (mine, kind), (other, known) = ((one.labels, one.kind) for one in (objective, theirs))
    last = {name for name in leaves if LAST.fullmatch(name)}
    if alike((mine, kind), (other, known)):
        return leaves
    if kind == known and sorted(mine) == sorted(other):
        order = np.array([other.index(name) for name in mine])
        return {name: x[..., order] if name in last else x for name, x in leaves.items()}
    return {name: x for name, x in leaves.items() if name not in last}


def known_as(family: Family, model: Any, names: Iterable[str]) -> set[str]:
    """Call a file's tensors as the family's own table does, where it has them: heads of pre-training that no task has."""
    ours = {rule.theirs: rule.ours for rule in family.rules(Network(model))}
    return {ours.get(name, name) for name in names}


def framed(objective: Any, tokenizer: Any) -> Any:
    """Give an objective of a run's config.json what of its tokenizer its parameters depend on."""
    return objective if objective.rows is None else objective.resolve(tokenizer)


def unread(objective: Any) -> dict[str, np.ndarray]:
    """Give the tensors that their classes ask for though no task reads them: XLNet's query of masked tokens."""
    if objective.task and isinstance(objective.model, network.XLNet):
        return {"transformer.mask_emb": np.zeros((1, 1, objective.model.width), np.float32)}
    return {}
