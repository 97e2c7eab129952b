"""A classifier asked for texts of any kind: under noise, paraphrase and attack, and where classes have other shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import numpy as np

from lm.data.types import Example
from lm.errors import UserError, check, check_choices
from lm.evaluation.attacks.adversarial import attacks
from lm.evaluation.attacks.perturbations import PERTURBATIONS, perturb
from lm.evaluation.attacks.robustness import change, invariance
from lm.evaluation.files import Item, items
from lm.evaluation.metrics.label_shift import reweighted
from lm.evaluation.metrics.statistics import Figures
from lm.evaluation.subject import Subject
from lm.sharding import NO_MESH
from lm.strict_json import load_json

Predict = Callable[[Sequence[str]], np.ndarray]  # texts (N) -> probabilities (N, labels)


class Classifier:
    """A run of `classify` with one label an example, asked for items; texts go through in rows of the same width."""

    def __init__(self, subject: Subject):
        objective = subject.objective
        right = objective.kind == "one" and bool(objective.labels)
        check(right, "this task asks a classifier with one label an example: a run of lm.objectives.classify")
        self.subject = subject
        rows = replace(objective.rows, row=0, pack=False)
        self.objective = replace(objective, rows=rows).resolve(subject.tokenizer)
        self.predict = jax.jit(self.objective.predict)

    def labels(self, found: Sequence[Item]) -> list[int]:
        """Give the number of each item's label; raises UserError for one that training does not know."""
        names = [str(item.get(self.objective.label)).strip() for item in found]
        known = self.objective.labels
        wrong = next((i for i, name in enumerate(names) if name not in known), None)
        if wrong is not None:
            raise UserError(f"{found[wrong].where}: label {names[wrong]!r} is none of {', '.join(known[:12])}")
        return [known.index(name) for name in names]

    def __call__(self, found: Sequence[Item]) -> np.ndarray:
        """Give probabilities (N, labels)."""
        size = max(1, self.subject.tokens // self.objective.row)
        parts = [found[low : low + size] for low in range(0, len(found), size)]
        return np.concatenate([self.batch(part, size if len(parts) > 1 else len(part)) for part in parts])

    def batch(self, part: Sequence[Item], size: int) -> np.ndarray:
        objective, rng = self.objective, np.random.default_rng(0)
        label = {objective.label: objective.labels[0]}  # asked for by the row, and not looked at
        rows = []
        for item in [*part, *[part[-1]] * (size - len(part))]:
            example = Example({**{name: item.text(name) for name in objective.fields}, **label}, item.where)
            rows.append(objective.corrupt(rng, {"examples": [(example, 0)], "room": 1}))
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        with jax.sharding.use_abstract_mesh(NO_MESH):
            found = self.predict(self.subject.params, batch)["probabilities"]
        return np.asarray(found)[: len(part), 0]


def changed(item: Item, name: str, text: str) -> Item:
    return Item(item.where, {**item.values, name: text})


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """Accuracy of a classifier on JSON lines with its fields and label: clean, with `rate` of letters or words hit, and
    the difference. The first field is disturbed. `how`: see `lm.evaluation.attacks.perturbations`.
    """

    path: str
    how: Literal[tuple(PERTURBATIONS)] = "swap_letters"
    rate: float = 0.1

    def __post_init__(self):
        check_choices(self)
        check(0 < self.rate <= 1, f"rate={self.rate} must be above 0 and at most 1")

    def measure(self, subject: Subject) -> Figures:
        ask, clean = Classifier(subject), items(self.path)
        truth, name = np.array(ask.labels(clean)), subject.objective.fields[0]
        texts = perturb([item.text(name) for item in clean], PERTURBATIONS[self.how], self.rate, subject.seed)
        noisy = [changed(item, name, text) for item, text in zip(clean, texts)]
        right = [(ask(found).argmax(1) == truth).astype(float) for found in (clean, noisy)]
        return change(*right)


@dataclass(frozen=True, kw_only=True)
class Paraphrased:
    """Whether a classifier says the same of two wordings: JSON lines with its first field, and `other`, the same again."""

    path: str
    other: str = "paraphrase"

    def measure(self, subject: Subject) -> Figures:
        ask, found = Classifier(subject), items(self.path)
        name = subject.objective.fields[0]
        second = [changed(item, name, item.text(self.other)) for item in found]
        labelled = all(subject.objective.label in item.values for item in found)
        return invariance(ask(found), ask(second), ask.labels(found) if labelled else None)


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A greedy search for synonyms that change a classifier's mind (TextFooler, PWWS; see `lm.evaluation.attacks.adversarial`).

    `synonyms`: a JSON file {"word": ["other", ...]}. At most the share `most` of a text's words is replaced.
    """

    path: str
    synonyms: str = ""
    order: Literal["deletion", "saliency"] = "deletion"
    most: float = 1.0

    def __post_init__(self):
        check_choices(self)

    def measure(self, subject: Subject) -> Figures:
        check(bool(self.synonyms), 'attacked: name ?synonyms=FILE.json, {"word": ["other", ...]}')
        ask, found = Classifier(subject), items(self.path)
        name, table = subject.objective.fields[0], self.table()

        def predict(texts: Sequence[str]) -> np.ndarray:
            return ask([changed(found[0], name, text) for text in texts])

        texts = [item.text(name) for item in found]
        extra = {"order": self.order, "most": self.most}
        return attacks(texts, ask.labels(found), predict, lambda word: table.get(word.lower(), []), **extra)[0]

    def table(self) -> dict[str, list[str]]:
        found = load_json(self.synonyms, dict)
        right = all(isinstance(x, list) and all(isinstance(one, str) for one in x) for x in found.values())
        check(right, f'{self.synonyms}: synonyms are an object, {{"word": ["other", ...]}}')
        return found


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """A classifier's accuracy if classes had other shares than in the file: `prior`, one share a label, in their order."""

    path: str
    prior: tuple[float, ...] = ()

    def measure(self, subject: Subject) -> Figures:
        ask, found = Classifier(subject), items(self.path)
        count = len(subject.objective.labels)
        prior = self.prior or (1 / count,) * count
        check(len(prior) == count, f"prior has {len(prior)} shares for {count} labels: {', '.join(subject.objective.labels)}")
        return reweighted(ask.labels(found), ask(found).argmax(1), np.array(prior))


TASKS = {"disturbed": Disturbed, "paraphrased": Paraphrased, "attacked": Attacked, "shifted": Shifted}
