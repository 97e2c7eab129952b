"""Calibration: does a classifier's confidence say how often it is right?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from lm.errors import UserError, check, unknown
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide, mean, proportion, same_length
from lm.evaluation.report.pictures import draw_reliability

Binning = Literal["width", "mass"]


def calibration(probabilities_NC: np.ndarray, truth_N: np.ndarray, bins: int = 15, seed: int = 0) -> Figures:
    """Measure predicted distributions against the true classes (ids).

    Gives accuracy, confidence (mean largest probability), ece (bins of equal width, Guo et al. 2017), ece_mass (of equal
    numbers of examples, Nguyen & O'Connor 2015), mce (the worst bin of equal width), brier (summed over classes, 0 to 2)
    and nll (nats; infinite where the true class was given 0). Bins stay those of the whole set in the resamples. An ece
    over few examples is too large, since noise in a bin never cancels: compare systems on the same examples.
    """
    p_NC, truth_N = _checked(probabilities_NC, truth_N)
    confidence_N, right_N = p_NC.max(1), p_NC.argmax(1) == truth_N
    of_truth_N = p_NC[np.arange(len(p_NC)), truth_N]
    with np.errstate(divide="ignore"):
        nll_N = -np.log(of_truth_N)
    rows = {how: binned(confidence_N, right_N, bins, how) for how in ("width", "mass")}
    wide = bootstrap_sums(rows["width"], {"ece": expected_error, "mce": worst_error}, seed)
    massed = bootstrap_sums(rows["mass"], {"ece_mass": expected_error}, seed)
    return {
        "accuracy": proportion(int(right_N.sum()), len(right_N)),
        "confidence": mean(confidence_N),
        **wide,
        **massed,
        "brier": mean((p_NC**2).sum(1) - 2 * of_truth_N + 1),
        "nll": _mean_of_any(nll_N),
    }


def _mean_of_any(values_N: np.ndarray):
    with np.errstate(invalid="ignore"):  # an infinite value has no spread
        return mean(values_N)


def _checked(probabilities_NC: np.ndarray, truth_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p_NC, truth_N = np.asarray(probabilities_NC, float), np.asarray(truth_N)
    same_length(distributions=p_NC, truths=truth_N)
    check(p_NC.ndim == 2, f"probabilities must be (examples, classes), not {p_NC.shape}")
    wrong = np.flatnonzero((np.abs(p_NC.sum(1) - 1) > 1e-3) | (p_NC < 0).any(1))
    if len(wrong):
        raise UserError(f"probabilities: row {wrong[0]} is no distribution; of logits take softmax(logits)")
    check(truth_N.dtype.kind in "iu", "true classes must be ids, the columns of the probabilities")
    check(truth_N.min() >= 0 and truth_N.max() < p_NC.shape[1], f"true classes must lie in 0..{p_NC.shape[1] - 1}")
    return p_NC, truth_N


def edges(confidence_N: np.ndarray, bins: int, how: Binning) -> np.ndarray:
    """Give the inner edges of the bins, (bins - 1,); a confidence on an edge belongs below it."""
    if how not in ("width", "mass"):
        raise unknown("binning", how, ("width", "mass"))
    check(bins > 0, f"bins={bins} must be at least 1")
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    return inner if how == "width" else np.quantile(confidence_N, inner)


def binned(confidence_N: np.ndarray, right_N: np.ndarray, bins: int, how: Binning) -> np.ndarray:
    """Write what each example adds to its bin's count, confidence and hits, (N, 3 bins)."""
    place_N = np.searchsorted(edges(confidence_N, bins, how), confidence_N)
    one_NM = np.eye(bins)[place_N]
    return np.concatenate([one_NM, one_NM * confidence_N[:, None], one_NM * right_N[:, None]], 1)


def gaps(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Part sums (..., 3 M) into |accuracy - confidence| and the share of examples of each bin, (..., M)."""
    count, confidence, right = np.split(sums, 3, -1)
    return np.abs(divide(right - confidence, count)), divide(count, count.sum(-1, keepdims=True))


def expected_error(sums: np.ndarray) -> np.ndarray:
    """Mean gap of the bins, weighted by their examples."""
    gap, share = gaps(sums)
    return (gap * share).sum(-1)


def worst_error(sums: np.ndarray) -> np.ndarray:
    """Largest gap of a bin that has examples."""
    return gaps(sums)[0].max(-1)


def reliability(
    probabilities_NC: np.ndarray, truth_N: np.ndarray, png: Path | None = None, bins: int = 15, how: Binning = "width"
) -> dict[str, np.ndarray]:
    """Give each bin's mean confidence, accuracy and count, (M,) each, NaN where it is empty, and draw them into `png`."""
    p_NC, truth_N = _checked(probabilities_NC, truth_N)
    sums = binned(p_NC.max(1), p_NC.argmax(1) == truth_N, bins, how).sum(0)
    count, confidence, right = np.split(sums, 3)
    found = {
        "confidence": divide(confidence, count, np.nan),
        "accuracy": divide(right, count, np.nan),
        "count": count.astype(int),
    }
    if png is not None:
        draw_reliability(found["confidence"], found["accuracy"], count, float(expected_error(sums)), png)
    return found


def softmax(logits_NC: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Turn logits into probabilities, float64, after dividing them by the temperature."""
    z_NC = np.asarray(logits_NC, float) / temperature
    e_NC = np.exp(z_NC - z_NC.max(-1, keepdims=True))
    return e_NC / e_NC.sum(-1, keepdims=True)


def fit_temperature(logits_NC: np.ndarray, truth_N: np.ndarray) -> float:
    """Find the temperature whose softmax(logits / T) has the least NLL (Guo et al. 2017): fit on dev, use on test.

    The NLL is convex in 1/T, so its slope has one root. Where the truth is always the largest logit it falls for ever as
    T does, and where logits carry nothing as T grows: the ends, 0.001 and 1000, are given then.
    """
    from scipy.optimize import brentq

    z_NC, truth_N = np.asarray(logits_NC, float), np.asarray(truth_N)
    same_length(logits=z_NC, truths=truth_N)
    check(bool(np.isfinite(z_NC).all()), "logits must be finite")
    of_truth_N = z_NC[np.arange(len(z_NC)), truth_N]

    def slope(log_inverse: float) -> float:
        p_NC = softmax(z_NC, np.exp(-log_inverse))
        return float(np.mean((p_NC * z_NC).sum(1) - of_truth_N))

    low, high = np.log(1e-3), np.log(1e3)
    if slope(low) >= 0:
        return 1e3
    return 1e-3 if slope(high) <= 0 else float(np.exp(-brentq(slope, low, high, xtol=1e-10)))
