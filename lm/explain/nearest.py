"""Training examples nearest to a prediction: those whose states, which the head reads, have the highest cosine to its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.corpus.prepare import prepare
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example, ExampleSet, labelled
from lm.errors import check
from lm.explain.attribution import Params
from lm.explain.labelled import parts_of, record_kind, run, task_number
from lm.objectives.base import Objective

ROWS = 16  # of one pass over training examples
NEAREST = 5  # training examples of a prediction


def training_examples(config: Config, tokenizer: Tokenizer, task: str | None, most: int) -> tuple[Objective, list[Example]]:
    """Return a run's resolved objective and its first training examples; raises UserError where its data has none."""
    check(labelled(config.data.source), "the config names no labelled training examples")
    number, sides = task_number(config.objective, task), prepare(config.data).train
    objective = config.objective if number is None else config.objective.parts[number].objective
    return objective.measured().resolve(tokenizer), list(sides[number or 0][1].examples[:most])


def similar(
    objective: Objective, examples: Sequence[Example], params: Params, states_PD: np.ndarray, reads: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Return for each state the training targets whose states have the highest cosine: their text, label and cosine."""
    states_ND, owners = states_of_examples(objective, examples, params)
    cosines_PN = unit(states_PD) @ unit(states_ND).T
    result = []
    for cosines_N in cosines_PN:
        best = np.argsort(-cosines_N, kind="stable")[:NEAREST]
        described = [(shown(objective, owners[i], reads), float(cosines_N[i])) for i in best]
        result.append([{**one, "cosine": cosine} for one, cosine in described])
    return result


def states_of_examples(
    objective: Objective, examples: Sequence[Example], params: Params
) -> tuple[np.ndarray, list[tuple[Example, int, int]]]:
    """Return the states that the head reads, (N, D), and their (example, part, target), in rows packed as in training."""
    stream = record_kind(objective).open(ExampleSet("training examples", list(examples)))
    unused, states = np.random.default_rng(0), []
    owners: list[tuple[Example, int, int]] = []
    for low in range(0, stream.once, ROWS):
        records = [stream.held_out(unused, min(k, stream.once - 1)) for k in range(low, low + ROWS)]
        rows = [objective.corrupt(unused, record) for record in records]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        found = np.asarray(run(objective, params, batch)[0].states_BPD)
        for k, record in enumerate(records[: stream.once - low]):
            first = 0
            for example, part in record["examples"]:
                count = parts_of(objective, example)[part][1]
                states += list(found[k, first : first + count])
                owners += [(example, part, target) for target in range(count)]
                first += count
    return np.stack(states), owners


def unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=-1, keepdims=True), 1e-12)


def shown(objective: Objective, owner: tuple[Example, int, int], reads: Sequence[str]) -> dict[str, Any]:
    """Describe a training target: its text, of a tagger the word within it, its gold label, and its file and line."""
    example, part, target = owner
    values = example.values
    texts = [" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in (values[r] for r in reads)]
    result = {"text": " | ".join(texts)[:300], "where": example.where, "word": ""}
    gold = values.get(next(iter(objective.placeholder(example)), ""), "")
    if objective.answers.form == "tags":
        word = sum(count for _, count in parts_of(objective, example)[:part]) + target
        return {**result, "word": str(values[reads[0]][word]), "label": str(gold[word])}
    return {**result, "label": " / ".join(map(str, gold)) if isinstance(gold, list) else str(gold)}
