"""Tasks on a classifier: under noise, paraphrase and attack, under label shift, and its calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from lm.data.types import Example
from lm.errors import UserError, check, check_choices
from lm.evaluation.attacks.adversarial import attack, summarise
from lm.evaluation.attacks.perturbations import Perturbed
from lm.evaluation.attacks.robustness import change, invariance
from lm.evaluation.files import read_examples
from lm.evaluation.metrics.calibration import calibration, fit_temperature
from lm.evaluation.metrics.label_shift import reweighted
from lm.evaluation.metrics.statistics import Figure, Figures
from lm.evaluation.subject import Subject
from lm.sharding import NO_MESH
from lm.strict_json import load_json

Predict = Callable[[Sequence[str]], np.ndarray]  # texts (N) -> probabilities (N, labels)


class Classifier:
    """Probabilities of a single-label `classify` run for examples of a file, one example a row, rows of equal width."""

    def __init__(self, subject: Subject):
        objective = subject.objective
        right = objective.kind == "one" and bool(objective.labels)
        check(right, "this task needs a classifier with one label an example: a run of lm.objectives.classify")
        self.subject = subject
        # Rows of one example each, as long as the longest may be: an attack's texts vary in length, shapes must not.
        rows = replace(objective.rows, row=0, pack=False)
        self.objective: Any = replace(objective, rows=rows).resolve(subject.tokenizer)
        self.predict = jax.jit(self.objective.predict)

    def label_ids(self, examples: Sequence[Example]) -> list[int]:
        """Return each example's label as an index; raises UserError for a label outside the run's."""
        known, ids = self.objective.labels, []
        for example in examples:
            name = str(example.get(self.objective.label, object)).strip()
            if name not in known:
                raise UserError(f"{example.where}: label {name!r} is none of {', '.join(known[:12])}")
            ids.append(known.index(name))
        return ids

    def __call__(self, examples: Sequence[Example]) -> np.ndarray:
        """Predict probabilities (N, labels)."""
        size = max(1, self.subject.tokens // self.objective.row)
        # Several batches share one compiled shape; a single one is as small as its examples.
        parts = [examples[low : low + size] for low in range(0, len(examples), size)]
        return np.concatenate([self.batch(part, size if len(parts) > 1 else len(part)) for part in parts])

    def batch(self, part: Sequence[Example], size: int) -> np.ndarray:
        objective, rng = self.objective, np.random.default_rng(0)
        label = {objective.label: objective.labels[0]}  # a row needs a label; prediction ignores it
        rows = []
        for example in [*part, *[part[-1]] * (size - len(part))]:  # filled up: one shape to compile for
            values = {**{name: example.get(name) for name in objective.fields}, **label}
            rows.append(objective.corrupt(rng, {"examples": [(Example(values, example.where), 0)], "room": 1}))
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        with jax.sharding.use_abstract_mesh(NO_MESH):
            probabilities_BPL = self.predict(self.subject.params, batch)["probabilities"]
        return np.asarray(probabilities_BPL)[: len(part), 0]


def with_text(example: Example, name: str, text: str) -> Example:
    return example._replace(values={**example.values, name: text})


@dataclass(frozen=True, kw_only=True)
class Disturbed(Perturbed):
    """Accuracy of a classifier on its fields and label: clean, with noise in the first field, and the difference.

    `how`: see `lm.evaluation.attacks.perturbations`.
    """

    def measure(self, subject: Subject) -> Figures:
        predict, clean = Classifier(subject), read_examples(self.path)
        truth, name = np.array(predict.label_ids(clean)), predict.objective.fields[0]
        # The same examples in both lists: their difference is paired, and an example's difficulty cancels in it.
        texts = self.perturbed([example.get(name) for example in clean], subject.seed)
        noisy = [with_text(example, name, text) for example, text in zip(clean, texts)]
        return change(*((predict(examples).argmax(1) == truth).astype(float) for examples in (clean, noisy)))


@dataclass(frozen=True, kw_only=True)
class Paraphrased:
    """Invariance of a classifier under paraphrase: its first field, and the same text reworded in the field `other`."""

    path: str
    other: str = "paraphrase"

    def measure(self, subject: Subject) -> Figures:
        predict, examples = Classifier(subject), read_examples(self.path)
        name = predict.objective.fields[0]
        second = [with_text(example, name, example.get(self.other)) for example in examples]
        labelled = all(predict.objective.label in example.values for example in examples)
        return invariance(predict(examples), predict(second), predict.label_ids(examples) if labelled else None)


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Accuracy of a classifier under adversarial substitution of words in its first field (TextFooler, PWWS).

    `synonyms`: a JSON file, {"word": ["other", ...]}. `order` and `most`: see `lm.evaluation.attacks.adversarial.attack`.
    """

    path: str
    synonyms: str = ""
    order: Literal["deletion", "saliency"] = "deletion"
    most: float = 1.0

    def __post_init__(self):
        check_choices(self)

    def measure(self, subject: Subject) -> Figures:
        check(bool(self.synonyms), 'attacked: name ?synonyms=FILE.json, {"word": ["other", ...]}')
        classifier, examples = Classifier(subject), read_examples(self.path)
        name, table = classifier.objective.fields[0], self.table()

        def predict(example: Example, texts: Sequence[str]) -> np.ndarray:
            # The other fields stay the example's own: of a pair, one side is attacked beside its partner.
            return classifier([with_text(example, name, text) for text in texts])

        def synonyms(word: str) -> list[str]:
            return table.get(word.lower(), [])

        return summarise([
            attack(example.get(name), label, partial(predict, example), synonyms, self.order, self.most)
            for example, label in zip(examples, classifier.label_ids(examples))
        ])  # fmt: skip

    def table(self) -> dict[str, list[str]]:
        table = load_json(self.synonyms, dict)
        right = all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in table.values())
        check(right, f'{self.synonyms}: synonyms are an object, {{"word": ["other", ...]}}')
        return table


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Accuracy of a classifier under other class priors: `prior`, one share a label in their order (default: uniform)."""

    path: str
    prior: tuple[float, ...] = ()

    def measure(self, subject: Subject) -> Figures:
        predict, examples = Classifier(subject), read_examples(self.path)
        count = len(subject.objective.labels)
        prior = self.prior or (1 / count,) * count
        check(len(prior) == count, f"prior has {len(prior)} shares for {count} labels: {', '.join(subject.objective.labels)}")
        return reweighted(predict.label_ids(examples), predict(examples).argmax(1), np.array(prior))


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Calibration of a classifier on its fields and label before (raw/) and after (scaled/) temperature scaling.

    The temperature is fitted on `fit`, a file of other labelled examples (Guo et al. 2017).
    """

    path: str
    fit: str = ""
    bins: int = 15

    def measure(self, subject: Subject) -> Figures:
        check(bool(self.fit), "calibrated: name ?fit=FILE, other labelled examples on which the temperature is fitted")
        from scipy.special import softmax

        predict, examples, development = Classifier(subject), read_examples(self.path), read_examples(self.fit)
        # Log-probabilities are logits up to a constant. float32 rounds small probabilities to 0.
        logits, fit_logits = (np.log(np.maximum(predict(part), 1e-38)) for part in (examples, development))
        temperature = fit_temperature(fit_logits, np.array(predict.label_ids(development)))
        truth_N = np.array(predict.label_ids(examples))
        figures: Figures = {"temperature": Figure.of(temperature, np.nan)}
        for name, scaled in (("raw", logits), ("scaled", logits / temperature)):
            measured = calibration(softmax(scaled, -1), truth_N, self.bins, subject.seed)
            figures |= {f"{name}/{metric}": figure for metric, figure in measured.items()}
        return figures
