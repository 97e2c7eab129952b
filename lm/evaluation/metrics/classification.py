"""Classification and regression: accuracy, precision, recall, F1, Matthews and rank correlations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.statistics import Figures, bootstrap, bootstrap_sums, divide, mean, proportion, same_length

Label = int | str


def confusion(
    truth: Sequence[Label], predicted: Sequence[Label], classes: Sequence[Label] | None = None
) -> tuple[np.ndarray, list[Label]]:
    """Count examples by (true, predicted) class, int (K, K); return (counts, classes).

    `classes` defaults to the sorted labels of both sides, as in scikit-learn. Raises UserError for a label outside them.
    """
    same_length(truths=truth, predictions=predicted)
    truth, predicted = [np.asarray(part).tolist() for part in (truth, predicted)]
    classes = sorted({*truth, *predicted}) if classes is None else list(classes)
    place = {name: k for k, name in enumerate(classes)}
    strange = next((label for label in (*truth, *predicted) if label not in place), None)
    check(strange is None, f"label {strange!r} is none of the classes {', '.join(map(str, classes))}")
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, ([place[t] for t in truth], [place[p] for p in predicted]), 1)
    return counts, classes


def scores(
    truth: Sequence[Label],
    predicted: Sequence[Label],
    classes: Sequence[Label] | None = None,
    seed: int = 0,
) -> Figures:
    """Measure single-label classification.

    Returns accuracy, balanced_accuracy, matthews; precision, recall and f1 as NAME/macro, /micro, /weighted and /CLASS. A
    ratio without examples counts as 0, as in scikit-learn.
    """
    counts_KK, classes = confusion(truth, predicted, classes)
    formulas: dict[str, Callable] = {"matthews": matthews, "balanced_accuracy": balanced_accuracy}
    for which, name in enumerate(("precision", "recall", "f1")):
        formulas |= {f"{name}/{how}": partial(_averaged, which=which, how=how) for how in ("macro", "micro", "weighted")}
        formulas |= {f"{name}/{apart(label)}": partial(_one, which=which, k=k) for k, label in enumerate(classes)}
    # Every figure is a function of the confusion matrix: its cells are the rows to resample, however many examples.
    rows, times = _cells(counts_KK)
    total = int(counts_KK.sum())
    return {
        "accuracy": proportion(int(np.trace(counts_KK)), total),
        **bootstrap_sums(rows, formulas, seed, counts=times),
    }


def apart(label: Label) -> Label:
    """Quote the name of a class that is also the name of an average."""
    return f"'{label}'" if label in ("macro", "micro", "weighted") else label


def _cells(counts_KK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the addends of an example in each filled cell to (hits, truths, guesses) by class, and the cells' counts."""
    k_of, j_of = np.nonzero(counts_KK)
    one = np.eye(len(counts_KK))
    return np.concatenate([one[k_of] * (k_of == j_of)[:, None], one[k_of], one[j_of]], 1), counts_KK[k_of, j_of]


def _parts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split sums (..., 3 K) into hits, truths and guesses, each (..., K)."""
    hits, truths, guesses = np.split(sums, 3, -1)
    return hits, truths, guesses


def ratios(hits: np.ndarray, truths: np.ndarray, guesses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute precision, recall and F1 from counts of any shape; 0 where a denominator is 0."""
    return divide(hits, guesses), divide(hits, truths), divide(2 * hits, truths + guesses)


def _one(sums: np.ndarray, which: int, k: int) -> np.ndarray:
    return ratios(*(part[..., k] for part in _parts(sums)))[which]


def _averaged(sums: np.ndarray, which: int, how: str) -> np.ndarray:
    return averaged(*_parts(sums), which, how)


def averaged(hits: np.ndarray, truths: np.ndarray, guesses: np.ndarray, which: int, how: str) -> np.ndarray:
    """Average precision (0), recall (1) or F1 (2) over classes (..., K): macro, micro (pooled counts) or weighted."""
    if how == "micro":
        return ratios(*(part.sum(-1) for part in (hits, truths, guesses)))[which]
    values = ratios(hits, truths, guesses)[which]
    return values.mean(-1) if how == "macro" else divide((values * truths).sum(-1), truths.sum(-1))


def matthews(sums: np.ndarray) -> np.ndarray:
    """Compute Matthews' correlation for any number of classes (Gorodkin 2004) from sums of (hits, truths, guesses)."""
    hits, truths, guesses = _parts(sums)
    count, right = truths.sum(-1), hits.sum(-1)
    above = right * count - (truths * guesses).sum(-1)
    below = np.sqrt((count**2 - (guesses**2).sum(-1)) * (count**2 - (truths**2).sum(-1)))
    return divide(above, below)


def balanced_accuracy(sums: np.ndarray) -> np.ndarray:
    """Average the recall of the classes that occur."""
    hits, truths, _ = _parts(sums)
    return divide(divide(hits, truths).sum(-1), (truths > 0).sum(-1))


def multilabel(truth_NK: np.ndarray, predicted_NK: np.ndarray, names: Sequence[str] = (), seed: int = 0) -> Figures:
    """Measure multi-label classification of binary indicators (N, K).

    Returns subset_accuracy (all labels right), hamming (share of wrong decisions), f1/micro, /macro, /weighted, and f1/NAME
    for each of `names`.
    """
    same_length(truths=truth_NK, predictions=predicted_NK)
    truth_NK, predicted_NK = np.asarray(truth_NK), np.asarray(predicted_NK)
    check(truth_NK.shape == predicted_NK.shape and truth_NK.ndim == 2, "give both as (examples, labels) of 0 and 1")
    check(bool(np.isin(truth_NK, (0, 1)).all() and np.isin(predicted_NK, (0, 1)).all()), "labels must be 0 or 1")
    check(len(names) in (0, truth_NK.shape[1]), f"{len(names)} names for {truth_NK.shape[1]} labels")
    t, p = truth_NK.astype(bool), predicted_NK.astype(bool)
    # The same formulas as of single labels: hits, truths and guesses of each label are sums over examples here, too.
    formulas = {f"f1/{how}": partial(_averaged, which=2, how=how) for how in ("micro", "macro", "weighted")}
    formulas |= {f"f1/{apart(name)}": partial(_one, which=2, k=k) for k, name in enumerate(names)}
    return {
        "subset_accuracy": proportion(int((t == p).all(1).sum()), len(t)),
        "hamming": mean((t != p).mean(1)),
        **bootstrap_sums(np.concatenate([t & p, t, p], 1), formulas, seed),
    }


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Pearson's correlation; NaN where one side is constant."""
    # Not scipy's pearsonr, which tests significance, too: seven times slower, and a bootstrap calls it a thousand times.
    sides = np.asarray(first, float), np.asarray(second, float)
    if any(len(x) and np.ptp(x) == 0 for x in sides):  # the mean of equal numbers may be one ulp beside them
        return math.nan
    a, b = (x - x.mean() for x in sides)
    return float(divide(a @ b, math.sqrt((a @ a) * (b @ b)), math.nan))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Spearman's correlation: Pearson's of the ranks, ties at their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(first), rankdata(second))


def regression(truth: Sequence[float], predicted: Sequence[float], seed: int = 0) -> Figures:
    """Measure regression: pearson, spearman, their mean `pearson_spearman` (STS-B's headline), mse and mae."""
    same_length(truths=truth, predictions=predicted)
    t, p = np.asarray(truth, float), np.asarray(predicted, float)

    def correlations(i: np.ndarray) -> dict[str, float]:
        linear, ranked = pearson(t[i], p[i]), spearman(t[i], p[i])
        return {"pearson": linear, "spearman": ranked, "pearson_spearman": (linear + ranked) / 2}

    return {**bootstrap(correlations, len(t), seed), "mse": mean((t - p) ** 2), "mae": mean(np.abs(t - p))}
