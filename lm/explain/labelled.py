"""Labels of fine-tuned networks on one example: scores, attributions to the tokens, attention, similar training examples.

The objective declares what a label's score is (`Objective.scored`), which score predicts (`decide`), and the state that the
head reads; classifiers, taggers, readers, choosers and rankers are explained by the same code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.rows.examples import Examples
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example, ExampleSet
from lm.errors import UserError, check, unknown
from lm.explain.attribution import (
    Network,
    Params,
    baseline_of,
    embed,
    gradient_times_input,
    integrated_gradients,
    observe,
    replaced_embeddings,
)  # fmt: skip
from lm.explain.numbers import numbers
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.base import Objective
from lm.objectives.finetune.network import bare

ATTRIBUTED = 12  # targets that 'auto' attributes: the words of a sentence
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LabelScorer:
    """An objective whose score of a target is the sum of some of its label scores; hashable: a static argument."""

    objective: Objective

    def score(
        self, params: Params, batch: Mapping[str, Any], vectors: tuple[jax.Array, ...], positions_R: jax.Array, ids_R: jax.Array
    ) -> jax.Array:
        """Sum the scores `ids_R` (R, K) of the targets `positions_R` (R,)."""
        with replaced_embeddings(vectors):
            scores_RPC = self.objective.scored(params, batch).scores_BPC
        scores_RC = jnp.take_along_axis(scores_RPC, positions_R[:, None, None], 1)[:, 0]
        return jnp.take_along_axis(scores_RC, ids_R, 1).sum(-1)

    def loss(self, params: Params, batch: Mapping[str, Any], picks: tuple[jax.Array, ...]) -> jax.Array:
        """Return the mean of -log p of the decided labels of one row; `picks`: their scores, int32 (P, K)."""
        scores_PC, (ids_PK,) = self.objective.scored(params, batch).scores_BPC[0], picks
        scores_PC = scores_PC[: len(ids_PK)]
        if self.objective.answers.form == "labels":
            return -jnp.take_along_axis(jax.nn.log_sigmoid(scores_PC), ids_PK, 1).mean()
        # A reader has two distributions, over starts and over ends.
        scores_PKC = scores_PC.reshape(len(ids_PK), ids_PK.shape[1], -1)
        log_PKC = jax.nn.log_softmax(scores_PKC)
        ids_PK = ids_PK % scores_PKC.shape[-1]
        return -jnp.take_along_axis(log_PKC, ids_PK[..., None], 2).sum((1, 2)).mean()


@partial(jax.jit, static_argnums=0)
def run(objective: Objective, params: Params, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the scores and states of a batch's targets, and its predictions."""
    return objective.scored(params, batch), objective.predict(params, batch)


def task_number(objective: Objective, task: str | None) -> int | None:
    """Return the number of a task of a run of several; None for a run of one."""
    if not objective.apart:
        check(task is None, f"--task={task}: this run has one task; leave it out")
        return None
    names = [part.name for part in objective.parts]
    check(task is not None, f"this run has several tasks: --task={' or '.join(names)}")
    if task not in names:
        raise unknown("task", task, names)
    return names.index(task)


def select_task(objective: Objective, params: Params, task: str | None) -> tuple[Objective, Params]:
    """Return the objective and the parameters of a task, or of a run of one."""
    objective, number = objective.measured(), task_number(objective, task)
    if number is None:
        return objective, params
    return objective.parts[number].objective.measured(), objective.parts[number].params(params)


def example_of(objective: Objective, given: str | Mapping[str, Any]) -> Example:
    """Make an example of a text, of a JSON object of the values that the objective reads, or of a mapping of them.

    A tagger's text is split at spaces; in a script without them every character is a word.
    """
    answers = objective.answers
    reads = answers.reads
    values = given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            values = json.loads(given)
        except json.JSONDecodeError as error:
            raise UserError(f"--text is no JSON object: {error}") from None
    if isinstance(values, str):
        names = ", ".join(f'"{name}": ...' for name in reads)
        check(len(reads) == 1, f"this {answers.kind} reads several values: --text='{{{names}}}'")
        spaced = len(values.split()) > 1 or values.upper() != values.lower()
        words = values.split() if spaced else list(values.strip())
        values = {reads[0]: words, "spaced": spaced} if answers.form == "tags" else {reads[0]: values.strip()}
    missing = [name for name in reads if name not in values]
    check(not missing, f"--text has no {', '.join(map(repr, missing))}, which this {answers.kind} reads")
    example = Example(dict(values), "--text")
    return example._replace(values={**example.values, **objective.placeholder(example)})


def texts_of(objective: Objective, example: Example) -> list[str]:
    """Return the texts of an example that its objective reads."""
    values = [example.values[name] for name in objective.answers.reads]
    return [text for value in values for text in (value if isinstance(value, list) else [str(value)])]


def prepared(objective: Objective, tokenizer: Tokenizer, example: Example) -> Objective:
    """Return the objective without limits of its training examples, ready to lay out another."""
    side = ExampleSet("--text", [example])
    corpus = Corpus(tokenizer, ((1.0, side),), side, "--text", side.raw_bytes, "", Path())
    return objective.unbounded(tokenizer, [example]).resolve(tokenizer).study(corpus)


def record_kind(objective: Objective) -> Examples:
    """Return how an objective's labelled examples become rows; raises UserError for one of running text."""
    records = objective.records
    if not isinstance(records, Examples):
        raise UserError(f"{type(objective).__name__} reads running text, which has no labels")
    return records


def parts_of(objective: Objective, example: Example) -> list[tuple[int, int]]:
    """Return (tokens, targets) of each part of an example, the windows of a long text."""
    return record_kind(objective).sizes(example)


def rows_of(objective: Objective, example: Example) -> list[dict[str, np.ndarray]]:
    """Lay out each part of an example as a batch of one row without padding."""
    rows = []
    for part, (_, targets) in enumerate(parts_of(objective, example)):
        row = objective.corrupt(np.random.default_rng(0), {"examples": [(example, part)], "room": targets})
        length, real = len(row["tokens"]), int((row["segments"] > 0).sum())
        along = ("tokens", "segments", "positions", "types", "source", "source_segments", "source_positions")
        check(length >= real > 0, "--text has no tokens in this model's tokenizer")
        rows.append({name: (x[:real] if name in along else x)[None] for name, x in row.items()})
    return rows


@dataclass(frozen=True)
class Decision:
    """The predictions of an objective on one part of an example, or on all of it."""

    objective: Objective
    example: Example
    part: int
    parts: int
    row: Arrays
    names: tuple[str, ...]
    scores_PC: np.ndarray
    states_PD: np.ndarray
    chosen: list[tuple[int, ...]]  # of each target, the indices of the explained scores

    @property
    def sides(self) -> tuple[np.ndarray, ...]:
        """Return the ids that are embedded, in the network's order."""
        return tuple(self.row[name] for name in ("source", "tokens") if name in self.row)


def decide(
    objective: Objective, params: Params, tokenizer: Tokenizer, given: str | Mapping[str, Any], label: str | None = None
) -> Decision:
    """Predict an example, or choose `label`; of a text in windows the one with the highest predicted score."""
    example = example_of(objective, given)
    objective = prepared(objective, tokenizer, example)
    names, rows, decisions = objective.score_names(example), rows_of(objective, example), []
    for part, row in enumerate(rows):
        scored, outputs = jax.device_get(run(objective, params, row))
        targets = parts_of(objective, example)[part][1]
        scores_PC, states_PD = scored.scores_BPC[0, :targets], scored.states_BPD[0, :targets]
        chosen = objective.decide(example, part, scores_PC, {name: x[0] for name, x in (outputs or {}).items()})
        decisions.append(Decision(objective, example, part, len(rows), row, names, scores_PC, states_PD, chosen))
    best = max(decisions, key=lambda one: max(x[list(ids)].sum() for x, ids in zip(one.scores_PC, one.chosen)))
    if label is None:
        return best
    check(bool(names), f"--label={label}: this {objective.answers.kind} has no labels; it explains its answer")
    if label not in names:
        raise unknown("label", label, list(names))
    return dataclasses.replace(best, chosen=[(names.index(label),)] * len(best.chosen))


def explain_labels(
    objective: Objective, params: Params, tokenizer: Tokenizer, given: str | Mapping[str, Any], *, label: str | None = None,
    layers: str = "auto", attribute: str = "auto", baseline: str = "mean", top: int = 5,
) -> dict[str, Any]:  # fmt: skip
    """Explain the predicted labels of an example, or `label`, as plain values and arrays in the layout of `explain`."""
    decision = decide(objective, params, tokenizer, given, label)
    objective, row = decision.objective, decision.row
    notes = [f"The text is read in {decision.parts} windows; window {decision.part + 1}, with the highest score, is shown."]

    # Predictions, with their attributions.
    sides, describe = decision.sides, Describer(decision, tokenizer)
    predictions = [describe(k, top, label is None) for k in range(len(decision.chosen))]
    attribute_labels(decision, params, predictions, baseline_of(baseline, params, tokenizer), attribute)

    # Attention of the same row.
    model, attention = objective.model, {}
    if isinstance(model, Transformer | EncoderDecoder):
        network = Network(bare(model), objective.rows.causal or isinstance(model, EncoderDecoder))
        seen = observe(network, params, sides, row.get("types") if len(sides) == 1 else None)[2]
        attention = {name: np.asarray(x)[:, 0] for name, x in jax.device_get(seen).items()}
    named, depth = numbers(layers, 1, "layers"), max(map(len, attention.values()), default=0)
    check(not named or max(named) <= depth, f"--layers={layers}: the model has {depth} layers, numbered from 1")
    return {
        "kind": "labels", "form": objective.answers.form, "objective": type(objective).__name__,
        "parameters": sum(x.size for x in jax.tree.leaves(params)), "text": " ".join(texts_of(objective, decision.example)),
        "columns": tokenizer.pieces([int(i) for side in sides for i in side[0]]),
        "split": sides[0].shape[1] if len(sides) > 1 else 0, "predictions": predictions, "attention": attention,
        "layers": named or layers, "baseline": baseline, "depth": depth, "notes": notes * (decision.parts > 1),
        "states": decision.states_PD,
    }  # fmt: skip


@dataclass(frozen=True)
class Describer:
    """Describe decided predictions as plain values."""

    decision: Decision
    tokenizer: Tokenizer

    def __call__(self, target: int, top: int, own: bool) -> dict[str, Any]:
        """Return one prediction: its label, score, probabilities of the labels, column of its token or -1."""
        one, form = self.decision, self.decision.objective.answers.form
        scores_C, ids = one.scores_PC[target], one.chosen[target]
        result = {"target": target, "ids": ids, "score": float(scores_C[list(ids)].sum()), "own": own, "lens": []}
        # A reader's answer is a span: its probability is that of its start times that of its end.
        if form == "spans":
            halves, size = np.split(scores_C, 2), len(scores_C) // 2
            logp = sum(float(log_softmax(half)[i % size]) for half, i in zip(halves, ids))
            text = self.tokenizer.decode(one.sides[0][0, ids[0] : ids[1] - size + 1]).strip() or "(no answer)"
            return {
                **result,
                "token": text,
                "column": ids[0],
                "logp": logp,
                "rank": 1,
                "top": [(text, float(np.exp(logp)))],
            }
        if form == "numbers":
            return {**result, "token": f"{result['score']:.4g}", "column": -1, "logp": None, "rank": 1, "top": []}
        log_C = -np.logaddexp(0, -scores_C) if form == "labels" else log_softmax(scores_C)
        best = np.argsort(-log_C, kind="stable")[: min(top, len(one.names))].tolist()
        result = {
            **result, "token": one.names[ids[0]], "logp": float(log_C[ids[0]]),
            "rank": 1 + int((log_C > log_C[ids[0]]).sum()), "top": [(one.names[i], float(np.exp(log_C[i]))) for i in best],
            "column": -1,
        }  # fmt: skip
        if form != "tags":
            return result
        first = sum(count for _, count in parts_of(one.objective, one.example)[: one.part])
        (words,) = (one.example.values[name] for name in one.objective.answers.reads)
        return {**result, "column": int(one.row["places"][0, target]), "word": words[first + target]}


def log_softmax(scores_C: np.ndarray) -> np.ndarray:
    return scores_C - np.logaddexp.reduce(scores_C)


def attribute_labels(
    decision: Decision, params: Params, predictions: list[dict[str, Any]], baseline_E: np.ndarray, attribute: str
) -> None:
    """Add "input" (gradient x input) and "integrated" gradients of the scores: to all, the named or the first few."""
    named, count = numbers(attribute, 1, "attribute"), len(predictions)
    check(not named or max(named) <= count, f"--attribute={attribute}: the text has {count} predictions, numbered from 1")
    which = [k - 1 for k in named] if named else list(range(count))[: ATTRIBUTED if attribute == "auto" else None]
    scorer, row, vectors = LabelScorer(decision.objective), dict(decision.row), embed(params, decision.sides)
    batch, repeated = jax.tree.map(lambda x: np.repeat(x, len(which), 0), (row, vectors))
    ids = np.array([decision.chosen[k] for k in which], np.int32)
    for k, values in zip(which, gradient_times_input(scorer, params, batch, repeated, which, ids)):
        predictions[k]["input"] = values
    for k, id in zip(which, ids):
        predictions[k]["integrated"] = integrated_gradients(scorer, params, row, vectors, k, id, baseline_E)
