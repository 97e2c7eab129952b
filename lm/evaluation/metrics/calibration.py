"""Calibration of a classifier: expected calibration error, Brier score, NLL and temperature scaling."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lm.errors import UserError, check, unknown
from lm.evaluation.metrics.statistics import Figure, Figures, bootstrap_sums, divide, mean, proportion, same_length

Binning = Literal["width", "mass"]


def calibration(probabilities_NC: np.ndarray, truth_N: np.ndarray, bins: int = 15, seed: int = 0) -> Figures:
    """Measure predicted distributions against true class ids.

    Returns accuracy, confidence (mean largest probability), ece (bins of equal width, Guo et al. 2017), ece_mass (bins of
    equal counts, Nguyen & O'Connor 2015), mce (worst bin of equal width), brier (summed over classes, 0 to 2) and nll
    (nats; infinite where a true class has probability 0). Resamples keep the bins of the whole set. The ece is biased upward
    on few examples, since noise within a bin never cancels: compare systems on the same examples.
    """
    p_NC, truth_N = _checked(probabilities_NC, truth_N)
    confidence_N, right_N = p_NC.max(1), p_NC.argmax(1) == truth_N
    of_truth_N = p_NC[np.arange(len(p_NC)), truth_N]
    with np.errstate(divide="ignore"):
        nll_N = -np.log(of_truth_N)
    # Fixed bins make the errors functions of sums, so that a resample costs one matrix product.
    rows = {how: binned(confidence_N, right_N, bins, how) for how in ("width", "mass")}
    wide = bootstrap_sums(rows["width"], {"ece": expected_error, "mce": worst_error}, seed)
    massed = bootstrap_sums(rows["mass"], {"ece_mass": expected_error}, seed)
    return {
        "accuracy": proportion(int(right_N.sum()), len(right_N)),
        "confidence": mean(confidence_N),
        **wide,
        **massed,
        # The squared distance to the one-hot truth.
        "brier": mean((p_NC**2).sum(1) - 2 * of_truth_N + 1),
        "nll": _mean_of_any(nll_N),
    }


def _mean_of_any(values_N: np.ndarray) -> Figure:
    with np.errstate(invalid="ignore"):  # an infinite value has no spread
        return mean(values_N)


def _checked(probabilities_NC: np.ndarray, truth_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p_NC, truth_N = np.asarray(probabilities_NC, float), np.asarray(truth_N)
    same_length(distributions=p_NC, truths=truth_N)
    check(p_NC.ndim == 2, f"probabilities must be (examples, classes), not {p_NC.shape}")
    wrong = np.flatnonzero((np.abs(p_NC.sum(1) - 1) > 1e-3) | (p_NC < 0).any(1))
    if len(wrong):
        raise UserError(f"probabilities: row {wrong[0]} is no distribution; apply softmax to logits first")
    check(truth_N.dtype.kind in "iu", "true classes must be ids, the columns of the probabilities")
    check(truth_N.min() >= 0 and truth_N.max() < p_NC.shape[1], f"true classes must lie in 0..{p_NC.shape[1] - 1}")
    return p_NC, truth_N


def edges(confidence_N: np.ndarray, bins: int, how: Binning) -> np.ndarray:
    """Return the inner edges of the bins, (bins - 1,); a confidence on an edge falls into the bin below."""
    if how not in ("width", "mass"):
        raise unknown("binning", how, ("width", "mass"))
    check(bins > 0, f"bins={bins} must be at least 1")
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    return inner if how == "width" else np.quantile(confidence_N, inner)


def binned(confidence_N: np.ndarray, right_N: np.ndarray, bins: int, how: Binning) -> np.ndarray:
    """Return the addends of each example to its bin's count, confidence and hits, (N, 3 bins)."""
    place_N = np.searchsorted(edges(confidence_N, bins, how), confidence_N)
    one_NM = np.eye(bins)[place_N]
    return np.concatenate([one_NM, one_NM * confidence_N[:, None], one_NM * right_N[:, None]], 1)


def gaps(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split sums (..., 3 M) into |accuracy - confidence| and the share of examples of each bin, (..., M)."""
    count, confidence, right = np.split(sums, 3, -1)
    return np.abs(divide(right - confidence, count)), divide(count, count.sum(-1, keepdims=True))


def expected_error(sums: np.ndarray) -> np.ndarray:
    """Average the gaps of the bins, weighted by their examples."""
    gap, share = gaps(sums)
    return (gap * share).sum(-1)


def worst_error(sums: np.ndarray) -> np.ndarray:
    """Return the largest gap of a bin that has examples."""
    return gaps(sums)[0].max(-1)


def fit_temperature(logits_NC: np.ndarray, truth_N: np.ndarray) -> float:
    """Fit the temperature T of softmax(logits / T) by least NLL (Guo et al. 2017); fit on dev data, apply to test data.

    The NLL is convex in 1/T, so its slope has one root. It falls without bound as T does where the true class always has
    the largest logit, and as T grows where logits carry no information: then T is 0.001 or 1000.
    """
    from scipy.optimize import brentq
    from scipy.special import softmax

    z_NC, truth_N = np.asarray(logits_NC, float), np.asarray(truth_N)
    same_length(logits=z_NC, truths=truth_N)
    check(bool(np.isfinite(z_NC).all()), "logits must be finite")
    of_truth_N = z_NC[np.arange(len(z_NC)), truth_N]

    def slope(log_inverse: float) -> float:
        # The derivative of the NLL by 1/T: the mean logit under the model less that of the true class.
        p_NC = softmax(z_NC / np.exp(-log_inverse), -1)
        return float(np.mean((p_NC * z_NC).sum(1) - of_truth_N))

    low, high = np.log(1e-3), np.log(1e3)
    if slope(low) >= 0:
        return 1e3
    return 1e-3 if slope(high) <= 0 else float(np.exp(-brentq(slope, low, high, xtol=1e-10)))
