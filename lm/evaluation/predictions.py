"""Predictions of a fine-tuned network for labelled examples: their forms, and the figures of each form.

An objective returns rows of plain values (`outcomes`); its `answers.form` names the entry of FORMS that reads and measures
them. A prediction is a line of predictions.jsonl: gold, guess, `right` (1, 0 or between), `confidence` where the network has
one, and fields of its form.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lm.data.types import Example
from lm.evaluation.metrics import calibration, classification, diversity, generation, qa, tagging
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide, proportion

Row = Mapping[str, Any]
Prediction = dict[str, Any]
BINS = 15


@dataclass(frozen=True)
class Form:
    """A form of prediction.

    `read(objective, example, parts)` makes the prediction from the rows of an example; None excludes an example whose label
    is unknown. `measure(objective, predictions, seed)` computes the figures; the `headline` ones are logged in training.
    `classes(objective, predictions)`: true classes, predicted classes and all classes, for a confusion matrix.
    """

    name: str
    read: Callable[[Any, Example, Sequence[Row]], Prediction | None]
    measure: Callable[[Any, Sequence[Prediction], int], Figures]
    headline: tuple[str, ...]
    classes: Callable[[Any, Sequence[Prediction]], tuple[list, list, list]] | None = None


class Found(NamedTuple):
    """Predictions with their examples; `parts`: the rows that each was read from."""

    form: Form
    objective: Any
    predictions: list[Prediction]
    examples: list[Example]
    parts: Sequence[Sequence[Row]] = ()

    def figures(self, seed: int = 0) -> Figures:
        return self.form.measure(self.objective, self.predictions, seed)


# -- one class of several ----------------------------------------------------------------------------------------------


def read_class(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction | None:
    shares, gold = parts[0]["probabilities"], objective.names(example)[0]
    if gold not in shares:
        return None
    guess = parts[0]["guess"]
    right = {"right": float(gold == guess), "confidence": max(shares.values())}
    return {"gold": gold, "guess": guess, **right, "probabilities": shares}


def measure_classes(objective: Any, predictions: Sequence[Prediction], seed: int) -> Figures:
    truth, guess, labels = classes_of(objective, predictions)
    shares_NC = np.array([[p["probabilities"][name] for name in labels] for p in predictions])
    truth_N = np.array([labels.index(name) for name in truth])
    sure = calibration.calibration(shares_NC, truth_N, BINS, seed)
    return {**sure, **classification.scores(truth, guess, labels, seed=seed)}


def classes_of(objective: Any, predictions: Sequence[Prediction]) -> tuple[list, list, list]:
    return [p["gold"] for p in predictions], [p["guess"] for p in predictions], list(objective.labels)


# -- any number of labels ----------------------------------------------------------------------------------------------


def read_labels(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction | None:
    shares, gold = parts[0]["probabilities"], objective.names(example)
    if any(name not in shares for name in gold):
        return None
    guess, chosen = parts[0]["guess"], [name for name in shares if name in gold]
    # All labels must be right at once: the least certain decides.
    sure = min(max(p, 1 - p) for p in shares.values())
    return {"gold": chosen, "guess": guess, "right": float(chosen == guess), "confidence": sure, "probabilities": shares}


def measure_labels(objective: Any, predictions: Sequence[Prediction], seed: int) -> Figures:
    labels = objective.labels
    gold, guess = (np.array([[name in p[side] for name in labels] for p in predictions], int) for side in ("gold", "guess"))
    return classification.multilabel(gold, guess, labels, seed)


# -- one of an example's own options -----------------------------------------------------------------------------------


def read_option(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction:
    gold, guess, shares = (parts[0][name] for name in ("gold", "guess", "probabilities"))
    return {"gold": gold, "guess": guess, "right": float(gold == guess), "confidence": max(shares), "probabilities": shares}


def measure_options(objective: Any, predictions: Sequence[Prediction], seed: int) -> Figures:
    most = max(len(p["probabilities"]) for p in predictions)
    # Examples may have different numbers of options: those that are lacking have probability 0.
    shares_NC = np.array([p["probabilities"] + [0.0] * (most - len(p["probabilities"])) for p in predictions])
    figures = calibration.calibration(shares_NC, np.array([p["gold"] for p in predictions]), BINS, seed)
    # Beside the accuracy, as the number of options, and with it the level of guessing, varies.
    chance = float(np.mean([1 / len(p["probabilities"]) for p in predictions]))
    return {**figures, "chance": proportion(chance * len(predictions), len(predictions))}


# -- a number ----------------------------------------------------------------------------------------------------------


def read_number(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction:
    gold, guess = float(parts[0]["gold"]), float(parts[0]["guess"])
    return {"gold": gold, "guess": guess, "error": abs(gold - guess)}


def measure_numbers(objective: Any, predictions: Sequence[Prediction], seed: int) -> Figures:
    return classification.regression([p["gold"] for p in predictions], [p["guess"] for p in predictions], seed)


# -- a tag for each word -----------------------------------------------------------------------------------------------


def read_tags(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction | None:
    gold, guess = list(example.get(objective.tags, list)), objective.merge(parts)
    if any(tag not in objective.labels for tag in gold):
        return None
    right = sum(a == b for a, b in zip(gold, guess, strict=True)) / len(gold)
    return {"gold": gold, "guess": guess, "right": right, "words": list(example.get(objective.words, list))}


def scheme_of(labels: Sequence[str]) -> str | None:
    """Detect the tagging scheme of spans, "conlleval" or "BILOU"; None for tags that are no spans."""
    inside = [name for name in labels if name != "O"]
    if not inside or any(name[1:2] != "-" or not name[2:] or name[0] not in "BIMESLU" for name in inside):
        return None
    return "BILOU" if any(name[0] in "LU" for name in inside) else "conlleval"


def measure_tags(objective: Any, predictions: Sequence[Prediction], seed: int) -> Figures:
    """Measure entities if the tags are spans, else single words."""
    gold, guess = ([p[side] for p in predictions] for side in ("gold", "guess"))
    scheme = scheme_of(objective.labels)
    if scheme:
        return tagging.entities(gold, guess, None if scheme == "conlleval" else scheme, seed)
    # The words of all sentences as one list.
    flat = classification.scores(*tags_of(objective, predictions), seed=seed)
    return {"f1": flat["f1/macro"], **flat}


def tags_of(objective: Any, predictions: Sequence[Prediction]) -> tuple[list, list, list]:
    gold, guess = ([tag for p in predictions for tag in p[side]] for side in ("gold", "guess"))
    return gold, guess, list(objective.labels)


# -- a span of a paragraph ---------------------------------------------------------------------------------------------

RULES = {"SQuAD": qa.SQUAD, "CMRC": qa.CMRC}


def read_answer(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction:
    """Read an answer; its confidence is the softmax of scores over the candidates, "no answer" included where allowed."""
    from scipy.special import softmax

    merged, golds = objective.merge(example, parts), [text for text, _ in objective.gold(example)]
    context = example.get("context")
    rule = "CMRC" if 3 * sum(map(qa.is_chinese, context)) > len(context) else "SQuAD"
    exact, f1 = qa.best(merged["text"], golds, RULES[rule])
    offers = {candidate["text"]: candidate["score"] for candidate in merged["candidates"]}
    if objective.null:
        # Unanswerable only if no window of the paragraph has an answer: the lowest of their scores, as in BERT's SQuAD
        # 2.0 script.
        offers[""] = min(part["none"] for part in parts)
    # No candidates: every likely end lies before every likely start.
    shares = dict(zip(offers, map(float, softmax([*offers.values()])))) if offers else {}
    more = {"right": exact, "f1": f1, "confidence": shares.get(merged["text"], 0.0), "rule": rule}
    listed = dict(sorted(shares.items(), key=lambda pair: -pair[1])[:5])
    odds = merged["odds"] if math.isfinite(merged["odds"]) else None
    return {"gold": golds, "guess": merged["text"], **more, "odds": odds, "probabilities": listed}


def measure_answers(objective: Any, predictions: Sequence[Prediction], seed: int) -> Figures:
    """Measure answers by SQuAD's rules, or CMRC's if most paragraphs are Chinese; unanswerable ones add the best bounds."""
    rule, golds = RULES[Counter(p["rule"] for p in predictions).most_common(1)[0][0]], [p["gold"] for p in predictions]
    figures = qa.answers([p["guess"] for p in predictions], golds, rule)
    if not all(golds):
        spans = [next(filter(None, p["probabilities"]), "") for p in predictions]  # the likeliest non-empty one
        odds_N = np.array([p["odds"] or 0.0 for p in predictions])  # None: without a span no bound matters
        figures |= qa.best_thresholds(spans, golds, odds_N, rule)
    sure_N, right_N = (np.array([p[name] for p in predictions]) for name in ("confidence", "right"))
    rows = calibration.binned(sure_N, right_N, BINS, "width")
    return figures | bootstrap_sums(rows, {"ece": calibration.expected_error}, seed)


# -- a text ------------------------------------------------------------------------------------------------------------


def read_text(objective: Any, example: Example, parts: Sequence[Row]) -> Prediction:
    """Read a generated text; `right` is its chrF with the nearest reference, from 0 to 1."""
    from sacrebleu.metrics import CHRF

    row = parts[0]
    return {**row, "right": CHRF().sentence_score(row["guess"], list(row["gold"])).score / 100}


def measure_texts(objective: Any, predictions: Sequence[Prediction], seed: int) -> Figures:
    """Measure texts by BLEU, chrF, ROUGE, exact match and distinct-n, and first references by bits per byte."""
    texts, golds = [p["guess"] for p in predictions], [p["gold"] for p in predictions]
    # Chinese has no spaces: its characters stand for words.
    words = [list(text.replace(" ", "")) if any(map(qa.is_chinese, text)) else text.split() for text in texts]
    more = diversity.diversity(words, seed=seed)
    if "reference_logprob" in predictions[0]:
        # Per byte of text, which compares models across tokenizers.
        rows = np.array([[-p["reference_logprob"] / math.log(2), p["reference_bytes"]] for p in predictions])
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
