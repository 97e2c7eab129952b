"""The one shape of an evaluation's result, and how sure it is: every figure carries its standard error.

A metric's functions take predictions and references and return `dict[str, Figure]`, the names being paths
(`f1`, `f1/PER`, `recall@5`). `flat` turns that into what is written as JSON: {"f1": 0.91, "f1_error": 0.004}.
Shares are fractions of 1 everywhere; only BLEU and chrF are in points of 100, as their scorer gives them.

Errors: `proportion` and `mean` are closed forms. Most others are functions of sums over examples (a F1 is one of counts,
BLEU of n-gram matches), so that resampling the examples is one matrix product (`bootstrap_sums`). What is no function of
sums is computed anew for each resample (`bootstrap`). Counts of distinct things, which a resample with its repeated
examples always understates, leave examples out instead (`jackknife`). Same seed, same figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lm.errors import check

Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Figure:
    """A measured value, its standard error, and the ends of its 95 % interval; NaN where undefined."""

    value: float
    error: float
    low: float
    high: float

    @staticmethod
    def of(value: float, error: float) -> Figure:
        """Take the normal interval, 1.96 errors to either side."""
        value, error = float(value), float(error)
        return Figure(value, error, value - Z * error, value + Z * error)

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


Figures = dict[str, Figure]


def flat(figures: Mapping[str, Figure], intervals: bool = False) -> dict[str, float | None]:
    """Write figures as {"name": value, "name_error": standard error}, with name_low and name_high where asked.

    What is not finite becomes None, since JSON has no word for it.
    """
    parts = ("value", "error", "low", "high") if intervals else ("value", "error")
    pairs = [(name if p == "value" else f"{name}_{p}", getattr(f, p)) for name, f in figures.items() for p in parts]
    return {name: value if math.isfinite(value) else None for name, value in pairs}


def divide(above: np.ndarray, below: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """Divide, giving `otherwise` where the denominator is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    return np.divide(above, below, out=np.full(above.shape, float(otherwise)), where=below != 0)


def same_length(**parts: object) -> int:
    """Return the common length of the named sequences; raise UserError where they differ or are empty."""
    lengths = {name: len(part) for name, part in parts.items()}
    told = ", ".join(f"{count} {name}" for name, count in lengths.items())
    check(len(set(lengths.values())) == 1, f"nothing can be compared between {told}: give one of each per example")
    count = next(iter(lengths.values()))
    check(count > 0, f"nothing to measure: {told}")
    return count


def proportion(successes: float, count: int) -> Figure:
    """Give the share of successes, its error sqrt(p (1 - p) / n) and Wilson's interval, which stays within 0 and 1."""
    check(count > 0, "a share of no examples is undefined")
    p = float(successes) / count
    centre, spread = (p + Z**2 / 2 / count), Z * math.sqrt(p * (1 - p) / count + (Z / 2 / count) ** 2)
    low, high = ((centre + sign * spread) / (1 + Z**2 / count) for sign in (-1, 1))
    return Figure(p, math.sqrt(p * (1 - p) / count), max(min(low, p), 0.0), min(max(high, p), 1.0))


def mean(values: np.ndarray) -> Figure:
    """Give the mean and its error s / sqrt(n), s with n - 1 below it; of a single value the error is NaN."""
    values = np.asarray(values, float).ravel()
    check(len(values) > 0, "a mean of no examples is undefined")
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    return Figure.of(values.mean(), spread / math.sqrt(len(values)))


def resampled(value: float, replicates: np.ndarray) -> Figure:
    """Give a value with the spread of its bootstrap replicates and their 2.5 and 97.5 percentiles."""
    known = np.asarray(replicates, float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or not math.isfinite(value):
        return Figure(float(value), math.nan, math.nan, math.nan)
    low, high = np.percentile(known, [2.5, 97.5])
    return Figure(float(value), float(known.std(ddof=1)), float(low), float(high))


Formula = Callable[[np.ndarray], np.ndarray]  # sums (..., S) -> values (...)


def bootstrap_sums(
    rows_NS: np.ndarray,
    formulas: Mapping[str, Formula],
    seed: int = 0,
    replicates: int = 1000,
    counts: np.ndarray | None = None,
) -> Figures:
    """Measure functions of sums over examples, all on the same resamples (Efron & Tibshirani 1993, percentile interval).

    rows_NS holds what each example adds to each of S sums; a formula maps sums (..., S) to values (...). `counts` says
    how often each row occurred, where equal examples were put together.
    """
    rows_NS = np.asarray(rows_NS, float)
    check(len(rows_NS) > 0, "nothing to measure: no examples")
    whole_S = rows_NS.sum(0) if counts is None else np.asarray(counts, float) @ rows_NS
    if (len(rows_NS) if counts is None else np.sum(counts)) == 1:
        replicates = 1  # a single example says nothing of its spread
    drawn_RS = np.concatenate([weights @ rows_NS for weights in _draws(len(rows_NS), seed, replicates, counts)])
    return {name: resampled(float(formula(whole_S)), formula(drawn_RS)) for name, formula in formulas.items()}


def _draws(size: int, seed: int, replicates: int, counts: np.ndarray | None = None):
    """Yield how often each row is in each resample, (some replicates, rows), a bounded number of replicates at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // size)
    for start in range(0, replicates, step):
        some = min(step, replicates - start)
        if counts is not None:
            total = int(np.sum(counts))
            yield rng.multinomial(total, np.asarray(counts, float) / total, size=some).astype(float)
            continue
        chosen = rng.integers(0, size, (some, size)) + size * np.arange(some)[:, None]
        yield np.bincount(chosen.ravel(), minlength=some * size).reshape(some, size).astype(float)


def bootstrap(
    statistic: Callable[[np.ndarray], Mapping[str, float]], size: int, seed: int = 0, replicates: int = 1000
) -> Figures:
    """Measure anything else: the statistic maps the indices of the examples in a resample, int (N,), to named values."""
    check(size > 0, "nothing to measure: no examples")
    rng = np.random.default_rng(seed)
    whole = statistic(np.arange(size))
    drawn = [statistic(rng.integers(0, size, size)) for _ in range(replicates if size > 1 else 1)]
    return {name: resampled(float(value), np.array([found[name] for found in drawn])) for name, value in whole.items()}


def jackknife(
    statistic: Callable[[np.ndarray], Mapping[str, float]], size: int, seed: int = 0, groups: int = 20
) -> Figures:
    """Measure with each of (at most) 20 random groups of examples left out in turn; a normal interval around the value."""
    check(size > 0, "nothing to measure: no examples")
    whole, order = statistic(np.arange(size)), np.random.default_rng(seed).permutation(size)
    if size == 1:
        return {name: Figure.of(value, math.nan) for name, value in whole.items()}
    parts = np.array_split(order, min(groups, size))
    found = [statistic(np.sort(np.concatenate([p for j, p in enumerate(parts) if j != i]))) for i in range(len(parts))]
    values = {name: np.array([f.get(name, math.nan) for f in found], float) for name in whole}
    known = {name: v[np.isfinite(v)] for name, v in values.items()}  # without a group nothing may be left to measure
    errors = {
        name: math.sqrt((len(v) - 1) * np.mean((v - v.mean()) ** 2)) if len(v) > 1 else math.nan for name, v in known.items()
    }
    return {name: Figure.of(value, errors[name]) for name, value in whole.items()}


@dataclass(frozen=True)
class Comparison:
    """The first system's value less the second's on the same examples, and the two-sided p of a difference that large."""

    difference: Figure
    p_value: float


def total(sums: np.ndarray) -> np.ndarray:
    """The formula of a mean, for rows (score, 1)."""
    return divide(sums[..., 0], sums[..., 1], math.nan)


def as_rows(scores: np.ndarray) -> np.ndarray:
    """Write scores (N,) as rows (score, 1), whose formula is their mean; rows (N, S) stay."""
    scores = np.asarray(scores, float)
    return np.stack([scores, np.ones_like(scores)], 1) if scores.ndim == 1 else scores


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, formula: Formula = total, seed: int = 0, replicates: int = 1000
) -> Comparison:
    """Compare two systems on the same resamples of their common examples (Koehn 2004).

    `first` and `second` are scores (N,), compared by their means, or rows (N, S) of sums with their formula. The p-value
    is the share of resamples whose difference lies as far from the mean difference as that from 0 (Riezler & Maxwell 2005).
    """
    a, b = as_rows(first), as_rows(second)
    size = same_length(first=a, second=b)
    draws = list(_draws(size, seed, replicates if size > 1 else 1))
    drawn = np.concatenate([formula(w @ a) - formula(w @ b) for w in draws])
    found = float(formula(a.sum(0)) - formula(b.sum(0)))
    extreme = np.abs(drawn - drawn.mean()) >= abs(found) * (1 - 1e-12)
    p_value = float((1 + extreme.sum()) / (1 + len(drawn))) if size > 1 else 1.0
    return Comparison(resampled(found, drawn), p_value)


def paired_permutation(
    first: np.ndarray, second: np.ndarray, formula: Formula = total, seed: int = 0, replicates: int = 10_000
) -> float:
    """Give the two-sided p of the difference when each example's two results may trade places (Noreen 1989).

    Exact, by all 2^N exchanges, where these are no more than `replicates`. Arguments as in `paired_bootstrap`.
    """
    a, b = as_rows(first), as_rows(second)
    size = same_length(first=a, second=b)
    exact = 2**size <= replicates
    rng, extreme, done = np.random.default_rng(seed), 0, 0
    both, half, goal = (a + b).sum(0) / 2, (a - b) / 2, 2**size if exact else replicates
    found = abs(float(formula(a.sum(0)) - formula(b.sum(0))))
    step = max(1, 2_000_000 // size)
    for start in range(0, goal, step):
        numbers = np.arange(start, min(start + step, goal))
        kept = (numbers[:, None] >> np.arange(size)) & 1 if exact else rng.integers(0, 2, (len(numbers), size))
        moved = (2.0 * kept - 1) @ half
        extreme += int((np.abs(formula(both + moved) - formula(both - moved)) >= found - 1e-12 * max(found, 1)).sum())
        done += len(numbers)
    return extreme / done if exact else (1 + extreme) / (1 + done)


def sign_test(positive: int, negative: int) -> float:
    """Give the two-sided binomial p of that many positive and negative differences; ties are left out before."""
    count, fewer = positive + negative, min(positive, negative)
    if count == 0:
        return 1.0
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**count)
