"""Robustness of a classifier: change of its figures under noise, and invariance under paraphrase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.statistics import Figures, mean, proportion, same_length


def change(clean_N: Sequence[float], perturbed_N: Sequence[float]) -> Figures:
    """Compare scores of the same examples: means `clean`, `perturbed`, and `delta`, their paired difference."""
    same_length(clean=clean_N, perturbed=perturbed_N)
    # By example before the mean: what is hard in both cancels, so the error is that of the change alone.
    delta_N = np.asarray(perturbed_N, float) - np.asarray(clean_N, float)
    return {"clean": mean(clean_N), "perturbed": mean(perturbed_N), "delta": mean(delta_N)}


def jensen_shannon(first_NC: np.ndarray, second_NC: np.ndarray) -> np.ndarray:
    """Compute the Jensen-Shannon divergence of each pair of distributions in nats, 0 to log 2, (N,)."""
    from scipy.special import rel_entr

    p_NC, q_NC = np.asarray(first_NC, float), np.asarray(second_NC, float)
    middle_NC = (p_NC + q_NC) / 2
    return np.maximum((rel_entr(p_NC, middle_NC) + rel_entr(q_NC, middle_NC)).sum(-1) / 2, 0.0)


def invariance(first_NC: np.ndarray, second_NC: np.ndarray, truth_N: Sequence[int] | None = None) -> Figures:
    """Compare predicted distributions (N, C) of original and paraphrased inputs.

    Returns same_prediction (share of pairs) and js_divergence (mean, nats); with true classes also clean, perturbed and
    delta of accuracy.
    """
    same_length(first=first_NC, second=second_NC)
    a_NC, b_NC = np.asarray(first_NC, float), np.asarray(second_NC, float)
    check(a_NC.shape == b_NC.shape and a_NC.ndim == 2, "both must be (pairs, classes)")
    a_N, b_N = a_NC.argmax(1), b_NC.argmax(1)
    same = proportion(int((a_N == b_N).sum()), len(a_N))
    figures = {"same_prediction": same, "js_divergence": mean(jensen_shannon(a_NC, b_NC))}
    if truth_N is None:
        return figures
    same_length(pairs=a_N, truths=truth_N)
    return figures | change(a_N == np.asarray(truth_N), b_N == np.asarray(truth_N))
