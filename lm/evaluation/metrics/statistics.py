"""Figures with standard errors and 95 % intervals: closed forms, the bootstrap and the jackknife.

Metrics map predictions and references to `dict[str, Figure]`; names are paths (`f1`, `f1/PER`, `accuracy@5`). `flat`
converts them to JSON: {"f1": 0.91, "f1_error": 0.004}. Shares are fractions of 1; only BLEU and chrF are in points of
100, as their scorer reports them.

`proportion` and `mean` have closed forms. Most other metrics are functions of sums over examples (F1 of counts, BLEU of
n-gram matches), so that all resamples are one matrix product (`bootstrap_sums`). Metrics that are no function of sums are
recomputed for each resample (`bootstrap`). Counts of distinct items, which repeated examples bias downward, use the
delete-a-group `jackknife`. Equal seeds return equal figures. scipy.stats resamples one statistic at a time and has no
counts of equal rows; its draws differ, so that figures of earlier runs would no longer repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
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
        """Return a figure with the normal interval, 1.96 errors to either side; an error of NaN leaves the ends undefined."""
        value, error = float(value), float(error)
        return Figure(value, error, value - Z * error, value + Z * error)

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


Figures = dict[str, Figure]


def flat(figures: Mapping[str, Figure], intervals: bool = False) -> dict[str, float | None]:
    """Flatten figures to {"name": value, "name_error": standard error}; `intervals` adds name_low and name_high.

    Values that are not finite become None: JSON has neither NaN nor infinity.
    """
    parts = ("value", "error", "low", "high") if intervals else ("value", "error")
    pairs = [(name if p == "value" else f"{name}_{p}", getattr(f, p)) for name, f in figures.items() for p in parts]
    return {name: value if math.isfinite(value) else None for name, value in pairs}


def divide(above: np.ndarray, below: np.ndarray | float, otherwise: float = 0.0) -> np.ndarray:
    """Divide elementwise; `otherwise` stands where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    return np.divide(top, bottom, out=np.full(top.shape, float(otherwise)), where=bottom != 0)


def same_length(**parts: Sized) -> int:
    """Return the common length of the named sequences; raise UserError where they differ or are empty."""
    lengths = {name: len(part) for name, part in parts.items()}
    listed = ", ".join(f"{count} {name}" for name, count in lengths.items())
    check(len(set(lengths.values())) == 1, f"nothing can be compared between {listed}: give one of each per example")
    count = next(iter(lengths.values()))
    check(count > 0, f"nothing to measure: {listed}")
    return count


def proportion(successes: float, count: int) -> Figure:
    """Return the share of successes, its error sqrt(p (1 - p) / n) and Wilson's interval, which stays within 0 and 1.

    `successes` may be fractional (an expected count), which scipy's binomtest refuses.
    """
    check(count > 0, "a share of no examples is undefined")
    p = float(successes) / count
    centre, spread = (p + Z**2 / 2 / count), Z * math.sqrt(p * (1 - p) / count + (Z / 2 / count) ** 2)
    # Clipped at p below: where p is 0 or 1, rounding may leave it outside of its own interval.
    low, high = ((centre + sign * spread) / (1 + Z**2 / count) for sign in (-1, 1))
    return Figure(p, math.sqrt(p * (1 - p) / count), max(min(low, p), 0.0), min(max(high, p), 1.0))


def mean(values: Sequence[float] | np.ndarray) -> Figure:
    """Return the mean and its standard error, s / sqrt(n) with n - 1 in s; NaN for a single value."""
    values = np.asarray(values, float).ravel()
    check(len(values) > 0, "a mean of no examples is undefined")
    spread = values.std(ddof=1) if len(values) > 1 else math.nan
    return Figure.of(values.mean(), spread / math.sqrt(len(values)))


def resampled(value: float, replicates: np.ndarray) -> Figure:
    """Return a value with the standard deviation of its bootstrap replicates and their 2.5 and 97.5 percentiles."""
    known = np.asarray(replicates, float)
    # A resample on which a figure is undefined (no example of a class) says nothing about its spread.
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
    """Bootstrap functions of sums over examples, all on the same resamples (Efron & Tibshirani 1993, percentile interval).

    rows_NS: the addends of each example to S sums. A formula maps sums (..., S) to values (...). `counts` (N): multiplicity
    of each row, where equal examples were merged.
    """
    rows_NS = np.asarray(rows_NS, float)
    check(len(rows_NS) > 0, "nothing to measure: no examples")
    whole_S = rows_NS.sum(0) if counts is None else np.asarray(counts, float) @ rows_NS
    if (len(rows_NS) if counts is None else np.sum(counts)) == 1:
        replicates = 1  # every resample of a single example is that example
    drawn_RS = np.concatenate([weights @ rows_NS for weights in _draws(len(rows_NS), seed, replicates, counts)])
    return {name: resampled(float(formula(whole_S)), formula(drawn_RS)) for name, formula in formulas.items()}


def _draws(size: int, seed: int, replicates: int, counts: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield the multiplicity of each row in each resample, (some replicates, rows)."""
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // size)  # bounds the memory of one matrix to 16 MB
    for start in range(0, replicates, step):
        some = min(step, replicates - start)
        if counts is not None:  # resampling merged rows is a multinomial draw
            total = int(np.sum(counts))
            yield rng.multinomial(total, np.asarray(counts, float) / total, size=some).astype(float)
            continue
        # Shifted into a range of its own for each resample, so that one bincount counts all.
        chosen = rng.integers(0, size, (some, size)) + size * np.arange(some)[:, None]
        yield np.bincount(chosen.ravel(), minlength=some * size).reshape(some, size).astype(float)


def bootstrap(
    statistic: Callable[[np.ndarray], Mapping[str, float]], size: int, seed: int = 0, replicates: int = 1000
) -> Figures:
    """Bootstrap any statistic of the indices of a resample's examples, int (N,), that returns named values."""
    check(size > 0, "nothing to measure: no examples")
    rng = np.random.default_rng(seed)
    whole = statistic(np.arange(size))
    drawn = [statistic(rng.integers(0, size, size)) for _ in range(replicates if size > 1 else 1)]
    return {name: resampled(float(value), np.array([values[name] for values in drawn])) for name, value in whole.items()}


def jackknife(statistic: Callable[[np.ndarray], Mapping[str, float]], size: int, seed: int = 0, groups: int = 20) -> Figures:
    """Delete-a-group jackknife: recompute with each of at most `groups` random groups left out; normal intervals."""
    check(size > 0, "nothing to measure: no examples")
    whole, order = statistic(np.arange(size)), np.random.default_rng(seed).permutation(size)
    if size == 1:
        return {name: Figure.of(value, math.nan) for name, value in whole.items()}
    parts = np.array_split(order, min(groups, size))
    without = [statistic(np.sort(np.concatenate([p for j, p in enumerate(parts) if j != i]))) for i in range(len(parts))]
    values = {name: np.array([f.get(name, math.nan) for f in without], float) for name in whole}
    known = {name: v[np.isfinite(v)] for name, v in values.items()}  # the other groups may hold nothing to measure
    # The samples share most of their examples: their variance is scaled up by the number of groups less one.
    errors = {
        name: math.sqrt((len(v) - 1) * np.mean((v - v.mean()) ** 2)) if len(v) > 1 else math.nan for name, v in known.items()
    }
    return {name: Figure.of(value, errors[name]) for name, value in whole.items()}
