"""Label shift: accuracy where classes have other shares than in the test set, and what shares an unlabelled set has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lm.errors import UserError, check
from lm.evaluation.metrics.classification import confusion
from lm.evaluation.metrics.statistics import Figure, Figures, divide, proportion, resampled, same_length


def reweighted(truth_N: Sequence[int], predicted_N: Sequence[int], prior_C: np.ndarray) -> Figures:
    """Measure accuracy where the classes have other shares than in this set: clean, reweighted and their delta.

    reweighted = sum over classes of share * recall. Each class of a positive share needs examples. Errors are those of the
    recalls, the shares taken as known.
    """
    count = same_length(truths=truth_N, predictions=predicted_N)
    truth_N, right_N = np.asarray(truth_N), np.asarray(truth_N) == np.asarray(predicted_N)
    prior_C = _distribution(prior_C)
    check(truth_N.min() >= 0 and truth_N.max() < len(prior_C), f"true classes must lie in 0..{len(prior_C) - 1}")
    count_C = np.bincount(truth_N, minlength=len(prior_C))
    absent = np.flatnonzero((prior_C > 0) & (count_C == 0))
    if len(absent):
        raise UserError(f"class {absent[0]} has a share but no examples to measure it on")
    recall_C = divide(np.bincount(truth_N, right_N, len(prior_C)), count_C)
    variance_C = divide(recall_C * (1 - recall_C), count_C)
    shift_C = prior_C - count_C / count
    return {
        "clean": proportion(int(right_N.sum()), count),
        "reweighted": Figure.of(prior_C @ recall_C, math.sqrt(prior_C**2 @ variance_C)),
        "delta": Figure.of(shift_C @ recall_C, math.sqrt(shift_C**2 @ variance_C)),
    }


def _distribution(shares_C: np.ndarray) -> np.ndarray:
    shares_C = np.asarray(shares_C, float)
    check(shares_C.ndim == 1 and bool((shares_C >= 0).all()), "shares must be one positive number a class")
    check(abs(shares_C.sum() - 1) < 1e-6, f"shares must sum to 1, not {shares_C.sum():g}")
    return shares_C


def adjusted(probabilities_NC: np.ndarray, trained_C: np.ndarray, prior_C: np.ndarray) -> np.ndarray:
    """Move predicted distributions from the shares of classes trained on to others by Bayes' rule."""
    trained_C, prior_C = _distribution(trained_C), _distribution(prior_C)
    check(bool((trained_C > 0).all()), "every class must have been trained on")
    p_NC = np.asarray(probabilities_NC, float) * (prior_C / trained_C)
    return divide(p_NC, p_NC.sum(1, keepdims=True))


def estimate_prior(
    probabilities_NC: np.ndarray, trained_C: np.ndarray, steps: int = 1000, tolerance: float = 1e-9
) -> np.ndarray:
    """Estimate a set's shares of classes without labels by EM (Saerens et al. 2002), (C,).

    Calibrate first (`calibration.fit_temperature`): overconfident probabilities give wrong shares.
    """
    prior_C = trained_C = _distribution(trained_C)
    for _ in range(steps):
        new_C = adjusted(probabilities_NC, trained_C, prior_C).mean(0)
        new_C = new_C / new_C.sum()
        if np.abs(new_C - prior_C).max() < tolerance:
            return new_C
        prior_C = new_C
    return prior_C


def estimate_shift(
    truth_N: Sequence[int],
    predicted_N: Sequence[int],
    target_M: Sequence[int],
    classes: int,
    seed: int = 0,
    replicates: int = 1000,
) -> Figures:
    """Estimate a set's shares of classes from predictions alone, share/K (BBSE, Lipton et al. 2018).

    `truth_N` and `predicted_N` are of labelled examples of the shares trained on, `target_M` the predictions on the set.
    Solves confusion @ ratio = predicted shares; shares below 0 become 0. Labelled examples and targets are resampled alike.
    """
    joint_CC = confusion(predicted_N, truth_N, range(classes))[0]
    target_C = np.bincount(np.asarray(target_M), minlength=classes)
    check(len(target_C) == classes, f"a prediction is above the last class, {classes - 1}")
    check(target_C.sum() > 0, "no predictions on the set whose shares are wanted")

    def solve(joint_CC: np.ndarray, target_C: np.ndarray) -> np.ndarray:
        joint_CC, target_C = joint_CC / joint_CC.sum(), target_C / target_C.sum()
        ratio_C = np.linalg.lstsq(joint_CC, target_C, rcond=None)[0]
        found_C = np.maximum(ratio_C, 0) * joint_CC.sum(0)
        return divide(found_C, found_C.sum(), math.nan)

    rng = np.random.default_rng(seed)
    joints, targets = (rng.multinomial(x.sum(), x.ravel() / x.sum(), size=replicates) for x in (joint_CC, target_C))
    drawn_RC = np.array([solve(j.reshape(classes, classes), t) for j, t in zip(joints, targets)])
    return {f"share/{k}": resampled(value, drawn_RC[:, k]) for k, value in enumerate(solve(joint_CC, target_C))}
