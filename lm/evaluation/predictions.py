"""What a fine-tuned network says of one example, in the few forms there are, and what is measured of each form.

Objectives of `lm.data.examples` give rows of plain values (`outcomes`); an objective's `answers.form`
names the entry of FORMS by which they are read and measured. A
prediction is what goes into predictions.jsonl: gold, guess, `right` (1, 0 or between), where it is known how sure the
network was `confidence`, and what else there is to tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.types import Example
from lm.evaluation.metrics import calibration, classification, diversity, generation, qa, tagging
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide, proportion

Row = Mapping[str, Any]
Prediction = dict[str, Any]
BINS = 15


@dataclass(frozen=True)
class Form:
    """One kind of answer.

    `read(objective, example, parts)` makes the prediction from the rows of an example; None: it counts nothing, as its
    label is unknown. `measure(objective, predictions, seed)` gives the figures, of which the `headline` ones are logged
    while training. `classes(objective, predictions)`: true and predicted classes for a confusion matrix, and all of them.
    """

    name: str
    read: Callable[[Any, Example, Sequence[Row]], Prediction | None]
    measure: Callable[[Any, Sequence[Prediction], int], Figures]
    headline: tuple[str, ...]
    classes: Callable[[Any, Sequence[Prediction]], tuple[list, list, list]] | None = None


# -- one class of several ----------------------------------------------------------------------------------------------


def read_class(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction | None:
    shares, gold = parts[0]["probabilities"], objective.names(example)[0]
    if gold not in shares:
        return None
    guess = parts[0]["guess"]
    right = {"right": float(gold == guess), "confidence": max(shares.values())}
    return {"gold": gold, "guess": guess, **right, "probabilities": shares}


def measure_classes(objective: Any, found: Sequence[Prediction], seed: int) -> Figures:
    truth, guess, labels = classes_of(objective, found)
    shares_NC = np.array([[one["probabilities"][name] for name in labels] for one in found])
    truth_N = np.array([labels.index(name) for name in truth])
    sure = calibration.calibration(shares_NC, truth_N, BINS, seed)
    return {**sure, **classification.scores(truth, guess, labels, seed=seed)}


def classes_of(objective: Any, found: Sequence[Prediction]) -> tuple[list, list, list]:
    return [one["gold"] for one in found], [one["guess"] for one in found], list(objective.labels)


# -- any number of labels ----------------------------------------------------------------------------------------------


def read_labels(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction | None:
    shares, gold = parts[0]["probabilities"], objective.names(example)
    if any(name not in shares for name in gold):
        return None
    guess, chosen = parts[0]["guess"], [name for name in shares if name in gold]
    sure = min(max(p, 1 - p) for p in shares.values())
    return {"gold": chosen, "guess": guess, "right": float(chosen == guess), "confidence": sure, "probabilities": shares}


def measure_labels(objective: Any, found: Sequence[Prediction], seed: int) -> Figures:
    labels = objective.labels
    sides = [np.array([[name in one[side] for name in labels] for one in found], int) for side in ("gold", "guess")]
    return classification.multilabel(*sides, labels, seed)


# -- one of an example's own options -----------------------------------------------------------------------------------


def read_option(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction:
    gold, guess, shares = (parts[0][name] for name in ("gold", "guess", "probabilities"))
    return {"gold": gold, "guess": guess, "right": float(gold == guess), "confidence": max(shares), "probabilities": shares}


def measure_options(objective: Any, found: Sequence[Prediction], seed: int) -> Figures:
    most = max(len(one["probabilities"]) for one in found)
    shares_NC = np.array([one["probabilities"] + [0.0] * (most - len(one["probabilities"])) for one in found])
    figures = calibration.calibration(shares_NC, np.array([one["gold"] for one in found]), BINS, seed)
    chance = float(np.mean([1 / len(one["probabilities"]) for one in found]))
    return {**figures, "chance": proportion(chance * len(found), len(found))}


# -- a number ----------------------------------------------------------------------------------------------------------


def read_number(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction:
    gold, guess = float(parts[0]["gold"]), float(parts[0]["guess"])
    return {"gold": gold, "guess": guess, "error": abs(gold - guess)}


def measure_numbers(objective: Any, found: Sequence[Prediction], seed: int) -> Figures:
    return classification.regression([one["gold"] for one in found], [one["guess"] for one in found], seed)


# -- a tag for each word -----------------------------------------------------------------------------------------------


def read_tags(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction | None:
    gold, guess = list(example.get(objective.tags, list)), objective.merge(parts)
    if any(tag not in objective.labels for tag in gold):
        return None
    right = sum(a == b for a, b in zip(gold, guess, strict=True)) / len(gold)
    return {"gold": gold, "guess": guess, "right": right, "words": list(example.get(objective.words, list))}


def scheme_of(labels: Sequence[str]) -> str | None:
    """Say how tags write spans: "conlleval" for the letters it knows, "BILOU"; None where they are no spans."""
    inside = [name for name in labels if name != "O"]
    if not inside or any(name[1:2] != "-" or not name[2:] or name[0] not in "BIMESLU" for name in inside):
        return None
    return "BILOU" if any(name[0] in "LU" for name in inside) else "conlleval"


def measure_tags(objective: Any, found: Sequence[Prediction], seed: int) -> Figures:
    """Entities where the tags are spans; else each word by itself, as the words were one long list."""
    gold, guess = ([one[side] for one in found] for side in ("gold", "guess"))
    scheme = scheme_of(objective.labels)
    if scheme:
        return tagging.entities(gold, guess, None if scheme == "conlleval" else scheme, seed)
    flat = classification.scores(*tags_of(objective, found), seed=seed)
    return {"f1": flat["f1/macro"], **flat}


def tags_of(objective: Any, found: Sequence[Prediction]) -> tuple[list, list, list]:
    gold, guess = ([tag for one in found for tag in one[side]] for side in ("gold", "guess"))
    return gold, guess, list(objective.labels)


# -- a span of a paragraph ---------------------------------------------------------------------------------------------

RULES = {"SQuAD": qa.SQUAD, "CMRC": qa.CMRC}


def read_answer(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction:
    """Confidence is the answer's share among the candidates and, where that is one, no answer: softmax of their scores."""
    found, golds = objective.merge(example, parts), [text for text, _ in objective.gold(example)]
    context = example.get("context")
    rule = "CMRC" if 3 * sum(map(qa.is_chinese, context)) > len(context) else "SQuAD"
    exact, f1 = qa.best(found["text"], golds, RULES[rule])
    offers = {one["text"]: one["score"] for one in found["candidates"]}
    if objective.null:
        offers[""] = min(part["none"] for part in parts)
    scores = np.array([*offers.values()])  # none: every likely end lies before every likely start
    shares = dict(zip(offers, map(float, calibration.softmax(scores)))) if offers else {}
    more = {"right": exact, "f1": f1, "confidence": shares.get(found["text"], 0.0), "rule": rule}
    listed = dict(sorted(shares.items(), key=lambda pair: -pair[1])[:5])
    odds = found["odds"] if math.isfinite(found["odds"]) else None
    return {"gold": golds, "guess": found["text"], **more, "odds": odds, "probabilities": listed}


def measure_answers(objective: Any, found: Sequence[Prediction], seed: int) -> Figures:
    """By the rule of most of the paragraphs: SQuAD's, or CMRC's for Chinese; where some have no answer, the best bounds."""
    rule, golds = RULES[Counter(one["rule"] for one in found).most_common(1)[0][0]], [one["gold"] for one in found]
    figures = qa.answers([one["guess"] for one in found], golds, rule)
    if not all(golds):
        spans = [next(filter(None, one["probabilities"]), "") for one in found]  # the likeliest that is not ""
        odds_N = np.array([one["odds"] or 0.0 for one in found])  # none: there is no span, so that no bound matters
        figures |= qa.best_thresholds(spans, golds, odds_N, rule)
    sure_N, right_N = (np.array([one[name] for one in found]) for name in ("confidence", "right"))
    rows = calibration.binned(sure_N, right_N, BINS, "width")
    return figures | bootstrap_sums(rows, {"ece": calibration.expected_error}, seed)


# -- a text ------------------------------------------------------------------------------------------------------------


def read_text(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction:
    """`right` is the text's chrF against the reference that is nearest, from 0 to 1."""
    from sacrebleu.metrics import CHRF

    row = parts[0]
    return {**row, "right": CHRF().sentence_score(row["guess"], list(row["gold"])).score / 100}


def measure_texts(objective: Any, found: Sequence[Prediction], seed: int) -> Figures:
    """BLEU, chrF, ROUGE, exact match, how many different words and pairs of words there are (distinct-n), and what the
    first references cost the network, bits a byte.
    """
    texts, golds = [one["guess"] for one in found], [one["gold"] for one in found]
    words = [list(text.replace(" ", "")) if any(map(qa.is_chinese, text)) else text.split() for text in texts]
    more = diversity.diversity(words, seed=seed)
    if "reference_logprob" in found[0]:
        rows = np.array([[-one["reference_logprob"] / math.log(2), one["reference_bytes"]] for one in found])
        more |= bootstrap_sums(rows, {"bits_per_byte": lambda s: divide(s[..., 0], s[..., 1])}, seed)
    return {**generation.compared(texts, golds, seed), **generation.exact_match(texts, golds), **more}


CLASSES = Form("classes", read_class, measure_classes, ("accuracy", "f1/macro", "matthews", "ece"), classes_of)
LABELS = Form("labels", read_labels, measure_labels, ("f1/micro", "f1/macro", "subset_accuracy"))
OPTIONS = Form("options", read_option, measure_options, ("accuracy", "ece"))
NUMBERS = Form("numbers", read_number, measure_numbers, ("pearson", "spearman", "mae"))
TAGS = Form("tags", read_tags, measure_tags, ("f1", "accuracy"), tags_of)
SPANS = Form("spans", read_answer, measure_answers, ("exact", "f1"))
TEXTS = Form("texts", read_text, measure_texts, ("bleu", "chrf", "rougeL"))

FORMS = {form.name: form for form in (CLASSES, LABELS, OPTIONS, NUMBERS, TAGS, SPANS, TEXTS)}
