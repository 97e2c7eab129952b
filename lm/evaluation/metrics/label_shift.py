"""Label shift: accuracy under class priors other than those of the test set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lm.errors import UserError, check
from lm.evaluation.metrics.statistics import Figure, Figures, divide, proportion, same_length


def reweighted(truth_N: Sequence[int], predicted_N: Sequence[int], prior_C: np.ndarray) -> Figures:
    """Estimate accuracy under the class priors `prior_C`: clean, reweighted and their delta.

    reweighted = sum over classes of prior * recall. Each class of a positive prior needs examples. Errors are those of the
    recalls; the priors count as known.
    """
    count = same_length(truths=truth_N, predictions=predicted_N)
    labels_N = np.asarray(truth_N)
    right_N = labels_N == np.asarray(predicted_N)
    prior_C = np.asarray(prior_C, float)
    check(prior_C.ndim == 1 and bool((prior_C >= 0).all()), "shares must be one positive number a class")
    check(abs(prior_C.sum() - 1) < 1e-6, f"shares must sum to 1, not {prior_C.sum():g}")
    check(labels_N.min() >= 0 and labels_N.max() < len(prior_C), f"true classes must lie in 0..{len(prior_C) - 1}")
    count_C = np.bincount(labels_N, minlength=len(prior_C))
    absent = np.flatnonzero((prior_C > 0) & (count_C == 0))
    if len(absent):
        raise UserError(f"class {absent[0]} has a share but no examples to measure it on")
    recall_C = divide(np.bincount(labels_N, right_N, len(prior_C)), count_C)
    # Recalls of different classes rest on different examples: their variances add.
    variance_C = divide(recall_C * (1 - recall_C), count_C)
    shift_C = prior_C - count_C / count
    return {
        "clean": proportion(int(right_N.sum()), count),
        "reweighted": Figure.of(prior_C @ recall_C, math.sqrt(prior_C**2 @ variance_C)),
        "delta": Figure.of(shift_C @ recall_C, math.sqrt(shift_C**2 @ variance_C)),
    }
