"""Filters, sort keys and commands of the page of errors, for each form of predictions."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lm.data.types import Example
from lm.evaluation.metrics.tagging import spans
from lm.evaluation.predictions import (
    CLASSES,
    LABELS,
    NUMBERS,
    OPTIONS,
    SPANS,
    TAGS,
    TEXTS,
    Found,
    Prediction,
    scheme_of,
)
from lm.strict_json import dump_json

LONGEST = 100_000  # bytes of a text in a command: Linux takes 131,072 an argument
TINY = 2.0**-149  # the smallest float32: a probability that was rounded to 0 keeps a finite loss
Key = float | str | None  # None: sorted last in both directions


class Run(NamedTuple):
    """The run whose predictions are shown; `step`: auto, best, latest or a number; `task`: one of several."""

    folder: str
    step: str = "auto"
    task: str = ""


class Sort(NamedTuple):
    """A sort key; `falling`: the direction that shows the worst first; `note`: each error says its value."""

    name: str
    value: Callable[[Prediction], Key]
    falling: bool = True
    note: bool = False


class Facet(NamedTuple):
    """Labels to filter by: `values(objective, prediction)`, of which an error may have several."""

    name: str  # in the page's address
    title: str
    values: Callable[[Any, Prediction], Iterable[str]]


class Index(NamedTuple):
    """Sort keys, the first of which is the page's own order, and filters of one form of predictions."""

    sorts: tuple[Sort, ...]
    facets: tuple[Facet, ...] = ()


def keys_of(index: Index, found: Prediction, place: int) -> list[Key]:
    """Return the values of `names_of`: the sort keys and the place in the data."""
    keys = [*(sort.value(found) for sort in index.sorts), place]
    return [None if isinstance(key, float) and not math.isfinite(key) else key for key in keys]


def notes_of(index: Index, found: Prediction) -> list[str]:
    values = {sort.name: sort.value(found) for sort in index.sorts if sort.note}
    return [f"{name} {value:.3g}" for name, value in values.items() if value is not None]


def names_of(index: Index) -> list[tuple[str, bool]]:
    """List (name, falling) of the sort keys."""
    return [*((sort.name, sort.falling) for sort in index.sorts), ("order in the data", False)]


def labels_of(index: Index, found: Found, prediction: Prediction) -> list[list[str]]:
    """Return an error's labels for each facet; "(none)" stands for no label."""
    sides = (facet.values(found.objective, prediction) for facet in index.facets)
    return [[value or "(none)" for value in dict.fromkeys(side)] or ["(none)"] for side in sides]


def counts_of(labels: Sequence[list[list[str]]], facet: int) -> list[tuple[str, int]]:
    """Count the errors with each label of a facet, in the order of the labels' names."""
    return sorted(Counter(label for one in labels for label in one[facet]).items())


def confusions(labels: Sequence[list[list[str]]], most: int = 8) -> list[tuple[str, str, int]]:
    """List the most frequent (true, predicted, count); [] where errors have several labels or one pair says all."""
    if not all(len(one) == 2 and len(one[0]) == len(one[1]) == 1 for one in labels):
        return []
    pairs = Counter((gold, guess) for (gold,), (guess,) in labels)
    return [(*pair, count) for pair, count in pairs.most_common(most)] if len(pairs) > 1 else []


# -- commands ----------------------------------------------------------------------------------------------------------


def command(found: Found, prediction: Prediction, example: Example, run: Run | None) -> str:
    """Return the command that explains a prediction of a run, quoted for a POSIX shell; "" where there is none."""
    text = "" if run is None else source(found, prediction, example)
    if run is None or not text or "\0" in text or len(text.encode("utf-8", "replace")) > LONGEST:
        return ""
    # Of k folds each has its own run, which has not seen the example.
    folder = f"{run.folder}/{prediction['fold'].partition('/')[0]}" if "fold" in prediction else run.folder
    flags = [("workdir", folder), ("step", run.step.removeprefix("auto")), ("task", run.task), ("text", text)]
    return " ".join(["python -m lm.explain", *(f"--{name}={shlex.quote(value)}" for name, value in flags if value)])


def source(found: Found, prediction: Prediction, example: Example) -> str:
    """Return what a network read as lm.explain takes it: a text, or a JSON object of several values."""
    reads = found.objective.answers.reads
    values = {name: example.values[name] for name in reads if name in example.values}
    if found.form is TEXTS:
        return values[reads[0]] if len(reads) == 1 else prediction["prompt"]
    if found.form is TAGS:
        words, spaced = list(prediction["words"]), example.values.get("spaced", True)
        text = " ".join(words)
        plain, values = spaced and len(words) > 1 and text.split() == words, {reads[0]: words, "spaced": spaced}
    else:
        text = values.get(reads[0], "")
        plain = len(reads) == 1 and isinstance(text, str)
    # A text that begins like an object would be read as one.
    return text if plain and not text.lstrip().startswith("{") else dump_json(values)


# -- forms -------------------------------------------------------------------------------------------------------------


def entities(objective: Any, tags: Sequence[str]) -> set[tuple[str, int, int]]:
    scheme = scheme_of(objective.labels)
    if scheme is None:
        return {(tag, k, k + 1) for k, tag in enumerate(tags) if tag != "O"}
    return {(span.kind, span.start, span.stop) for span in spans(tags, None if scheme == "conlleval" else scheme)}


def wrong_kinds(side: str, other: str) -> Callable[[Any, Prediction], Iterable[str]]:
    """Select the kinds of one side's entities that the other side lacks."""
    return lambda objective, p: sorted({s[0] for s in entities(objective, p[side]) - entities(objective, p[other])})


def loss(p: float) -> float:
    return -math.log(max(p, TINY))


def loss_of_labels(found: Prediction) -> float:
    """Sum the binary cross-entropies of the labels, in nats."""
    return sum(loss(p if name in found["gold"] else 1 - p) for name, p in found["probabilities"].items())


def bits_per_byte(found: Prediction) -> Key:
    if not found.get("reference_bytes"):
        return None
    return -found["reference_logprob"] / found["reference_bytes"] / math.log(2)


def wrong_words(found: Prediction) -> float:
    return sum(a != b for a, b in zip(found["gold"], found["guess"]))


CONFIDENCE = Sort("confidence", lambda p: p["confidence"])
TRUE, PREDICTED = Sort("true label", lambda p: p["gold"], False), Sort("predicted label", lambda p: p["guess"], False)

INDEXES = {
    CLASSES.name: Index(
        (CONFIDENCE, Sort("loss", lambda p: loss(p["probabilities"][p["gold"]]), note=True), TRUE, PREDICTED),
        (
            Facet("true", "true label", lambda _, p: [p["gold"]]),
            Facet("predicted", "predicted label", lambda _, p: [p["guess"]]),
        ),
    ),
    LABELS.name: Index(
        (
            CONFIDENCE,
            Sort("loss", loss_of_labels, note=True),
            Sort("true labels", lambda p: ", ".join(p["gold"]), False),
            Sort("predicted labels", lambda p: ", ".join(p["guess"]), False),
        ),
        (Facet("true", "true label", lambda _, p: p["gold"]), Facet("predicted", "predicted label", lambda _, p: p["guess"])),
    ),
    OPTIONS.name: Index(
        (CONFIDENCE, Sort("loss", lambda p: loss(p["probabilities"][p["gold"]]), note=True)),
        (
            Facet("true", "right option", lambda _, p: [f"option {p['gold'] + 1}"]),
            Facet("predicted", "chosen option", lambda _, p: [f"option {p['guess'] + 1}"]),
        ),
    ),
    NUMBERS.name: Index(
        (
            Sort("difference", lambda p: p["error"], note=True),
            Sort("true value", lambda p: p["gold"]),
            Sort("predicted value", lambda p: p["guess"]),
        ),
        (Facet("predicted", "predicted", lambda _, p: ["too high" if p["guess"] > p["gold"] else "too low"]),),
    ),
    TAGS.name: Index(
        (Sort("wrong words", wrong_words, note=True), Sort("share of right words", lambda p: p["right"], False)),
        (
            Facet("true", "true label, missed", wrong_kinds("gold", "guess")),
            Facet("predicted", "predicted label, wrong", wrong_kinds("guess", "gold")),
        ),
    ),
    SPANS.name: Index(
        (
            CONFIDENCE,
            Sort("F1", lambda p: p["f1"], False, note=True),
            # Only the best candidates are listed: an answer below them counts as 0.
            Sort(
                "probability of the true answer",
                lambda p: sum(q for text, q in p["probabilities"].items() if text in (p["gold"] or [""])),
                False,
            ),
        ),
        (
            Facet("true", "truth", lambda _, p: ["an answer" if p["gold"] else "no answer"]),
            Facet("predicted", "predicted", lambda _, p: ["an answer" if p["guess"] else "no answer"]),
        ),
    ),
    TEXTS.name: Index((Sort("chrF", lambda p: p["right"], False, True), Sort("bits per byte", bits_per_byte, note=True))),
}
