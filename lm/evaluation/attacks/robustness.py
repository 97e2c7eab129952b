"""Robustness of a classifier: what its figures lose under noise and paraphrase.

`perturbations` makes the noise, `adversarial` looks for the worst of it, `label_shift` asks about other shares of classes and
`bias` about the names of groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.statistics import Figures, mean, proportion, same_length


def change(clean_N: Sequence[float], perturbed_N: Sequence[float]) -> Figures:
    """Compare scores of the same examples (right or wrong as 1 and 0, or any others): clean, perturbed and their delta.

    The delta is perturbed less clean, its error that of paired differences.
    """
    same_length(clean=clean_N, perturbed=perturbed_N)
    clean_N, perturbed_N = np.asarray(clean_N, float), np.asarray(perturbed_N, float)
    return {"clean": mean(clean_N), "perturbed": mean(perturbed_N), "delta": mean(perturbed_N - clean_N)}


def jensen_shannon(first_NC: np.ndarray, second_NC: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of each pair of distributions in nats, 0 to log 2, (N,)."""
    p_NC, q_NC = np.asarray(first_NC, float), np.asarray(second_NC, float)
    middle_NC = (p_NC + q_NC) / 2

    def half(x_NC: np.ndarray) -> np.ndarray:
        ratio = np.divide(x_NC, middle_NC, out=np.ones_like(x_NC), where=x_NC > 0)
        return (x_NC * np.log(ratio)).sum(-1) / 2

    return np.maximum(half(p_NC) + half(q_NC), 0.0)


def invariance(first_NC: np.ndarray, second_NC: np.ndarray, truth_N: Sequence[int] | None = None) -> Figures:
    """Compare predicted distributions for inputs that mean the same.

    Gives same_prediction (share of pairs) and js_divergence (mean, nats); with the true classes also clean, perturbed and
    delta of accuracy, the first inputs being the clean ones.
    """
    same_length(first=first_NC, second=second_NC)
    a_NC, b_NC = np.asarray(first_NC, float), np.asarray(second_NC, float)
    check(a_NC.shape == b_NC.shape and a_NC.ndim == 2, "give both as (pairs, classes)")
    a_N, b_N = a_NC.argmax(1), b_NC.argmax(1)
    same = proportion(int((a_N == b_N).sum()), len(a_N))
    found = {"same_prediction": same, "js_divergence": mean(jensen_shannon(a_NC, b_NC))}
    if truth_N is None:
        return found
    same_length(pairs=a_N, truths=truth_N)
    return found | change(a_N == np.asarray(truth_N), b_N == np.asarray(truth_N))
