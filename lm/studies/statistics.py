"""Paired comparisons of arms with a baseline over seeds: tests, correction for several arms, power, verdicts.

Arms share seeds with the baseline: the same data order and initialisation, so that differences within a seed have less
variance than the runs. `paired` measures one arm, `conclude` puts all arms of a study into words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ncfdtr, stdtr, stdtrit

from lm.errors import check

Values = Sequence[float] | np.ndarray
Verdict = Literal["better", "worse", "no difference found", "too few seeds"]
EXACT = 20  # differences up to which all sign vectors are enumerated: 2^19 sums are 4 MB
ROUNDING = 1e-12  # relative: below it, numbers differ by rounding only
LARGE = 2.0  # standard deviations of the differences: the difference to detect where a study states none


@dataclass(frozen=True)
class Sample:
    """Mean and standard deviation (n - 1) of the finished runs of an arm; NaN where undefined."""

    n: int
    diverged: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Paired:
    """An arm less its baseline over shared seeds.

    `n` counts the pairs with two finite values: mean, sd and interval are of these, NaN where undefined. `diverged` counts
    the other pairs. `direction` is 1 where the arm is ahead in sum, -1 where it is behind, 0 where both are level.
    """

    n: int
    diverged: int
    mean_difference: float
    sd: float
    low: float
    high: float
    p_t: float
    p_sign: float
    direction: int

    @property
    def p(self) -> float:
        """The p on which a verdict rests: of the t test, or of the sign-flip test where t is undefined (see `conclude`)."""
        return self.p_sign if self.diverged or math.isnan(self.p_t) else self.p_t


@dataclass(frozen=True)
class Conclusion:
    """A verdict on an arm, its p after Holm, and for "too few seeds" the number of seeds that would do (None: unknown)."""

    verdict: Verdict
    p: float
    seeds: int | None
    comparison: Paired


def sample(values: Values) -> Sample:
    """Describe the runs of an arm; values that are not finite are diverged runs."""
    values = np.asarray(values, float).ravel()
    finite = values[np.isfinite(values)]
    mean, sd = _moments(finite)
    return Sample(len(finite), len(values) - len(finite), mean, sd)


def _moments(finite_N: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation, NaN where undefined; squares of values at 1e200 do not overflow."""
    if not len(finite_N):
        return math.nan, math.nan
    scale = float(np.abs(finite_N).max()) or 1.0
    scaled = finite_N / scale
    return float(scaled.mean()) * scale, float(scaled.std(ddof=1)) * scale if len(finite_N) > 1 else math.nan


def paired(arm_values: Values, baseline_values: Values, higher_is_better: bool, level: float = 0.95, seed: int = 0) -> Paired:
    """Compare an arm with its baseline by the paired t test and the sign-flip test (two-sided), with a t interval.

    Both hold one value for each seed, in the same order. A value that is not finite is a diverged run; leave seeds that were
    not run out. Runs that diverge are the worst of all: leaving them out would reward an arm that only fails or excels. They
    enter the sign-flip test and the direction as differences larger than all others together; no mean or interval can hold
    them. t is undefined (NaN) for fewer than two pairs and for differences that are all equal: coarse metrics and runs that
    ignore their seed have such, and a spread of 0 would make chance look certain. `seed` draws signs above 20 differences.
    """
    check(0 < level < 1, f"level={level} must be above 0 and below 1")
    arm, baseline = (np.asarray(values, float).ravel() for values in (arm_values, baseline_values))
    check(len(arm) == len(baseline), f"a paired comparison needs the same seeds: {len(arm)} and {len(baseline)} values")
    fine = np.isfinite(arm), np.isfinite(baseline)
    both = fine[0] & fine[1]
    finite, n = arm[both] - baseline[both], int(both.sum())
    size = float(np.abs([arm[both], baseline[both]]).max()) if n else 1.0
    finite = np.where(np.abs(finite) <= ROUNDING * size, 0.0, finite)
    mean, sd = _moments(finite)
    if sd <= ROUNDING * size:
        sd = 0.0
    low = high = p_t = math.nan
    if n > 1:
        half = float(stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)
        low, high = mean - half, mean + half
    if sd > 0:
        p_t = float(2 * stdtr(n - 1, -abs(mean) / sd * math.sqrt(n)))
    # Any excess of diverged runs outweighs all finite differences; pairs that diverged on both sides are ties.
    large = 4 * float(np.abs(finite).sum()) or 1.0
    worst = -large if higher_is_better else large
    all_N = np.concatenate([finite, worst * (fine[1][~both].astype(float) - fine[0][~both])])
    total = float(all_N.sum())
    direction = 0 if abs(total) <= ROUNDING * np.abs(all_N).sum() else int(math.copysign(1, total))
    return Paired(
        n, len(arm) - n, mean, sd, low, high, p_t, sign_flip(all_N, seed), direction if higher_is_better else -direction
    )


def sign_flip(differences_N: Values, seed: int = 0, flips: int = 100_000) -> float:
    """Test paired differences against 0 by flipping signs, two-sided (Fisher 1935): exact up to 20 that are not 0.

    Valid for any noise where arm and baseline are exchangeable within a seed. The smallest p is 2 / 2^n: fewer than 6 seeds
    never reach .05. Above 20, p is (1 + hits) / (1 + flips) of sampled signs, which stays a valid p. scipy's
    `permutation_test` returns the same numbers and enumerates a few thousand times more slowly.
    """
    differences = np.asarray(differences_N, float).ravel()
    differences = differences[differences != 0]  # a zero doubles the sums that exceed the observed one and all others alike
    if not len(differences):
        return 1.0
    differences = differences / np.abs(differences).max()
    observed = abs(differences.sum()) - ROUNDING * np.abs(differences).sum()
    if len(differences) <= EXACT:
        sums = differences[:1]  # the first sign is fixed: the other half has the same absolute sums
        for difference in differences[1:]:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(np.mean(np.abs(sums) >= observed))
    rng, hits = np.random.default_rng(seed), 0
    step = max(1, 2_000_000 // len(differences))  # bounds the memory of one matrix to 16 MB
    for start in range(0, flips, step):
        signs = rng.integers(0, 2, (min(step, flips - start), len(differences))) * 2.0 - 1
        hits += int(np.sum(np.abs(signs @ differences) >= observed))
    return (1 + hits) / (1 + flips)


# -- several arms -------------------------------------------------------------------------------------------------------


def holm(p: Values) -> np.ndarray:
    """Adjust p by Holm's step-down method (1979): family-wise error under any dependence, as of arms on one baseline.

    NaN stays NaN and counts as a comparison.
    """
    p = np.asarray(p, float)
    order, m = np.argsort(p), p.size  # NaN sorts last
    adjusted = np.empty(m)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(m, 0, -1) * p[order]))
    return adjusted


# -- power --------------------------------------------------------------------------------------------------------------


def power_of(n: int, difference_over_sd: float, level: float = 0.95) -> float:
    """Return the power of the two-sided paired t test of n seeds; `sd` is that of the differences.

    t^2 follows the noncentral F distribution, whose tail holds both rejections. scipy's noncentral t returns NaN at few
    seeds and large differences.
    """
    critical = float(stdtrit(n - 1, (1 + level) / 2))
    return float(1 - ncfdtr(1, n - 1, n * difference_over_sd**2, critical**2))


def detectable(n: int, level: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest difference that n seeds detect with this power, in standard deviations of the differences.

    Infinite for a single seed.
    """
    _check_plan(level, power)
    if n < 2:
        return math.inf
    high = 1.0
    while power_of(n, high, level) < power:
        high *= 2
    return float(brentq(lambda difference: power_of(n, difference, level) - power, 0, high, xtol=1e-12))


def seeds_needed(difference_over_sd: float, level: float = 0.95, power: float = 0.8) -> int | None:
    """Return the fewest seeds that detect a difference with this power; None for no difference."""
    _check_plan(level, power)
    difference = abs(difference_over_sd)
    if not difference > 1e-6:  # NaN, and beyond 10^12 seeds
        return None
    difference, high = min(difference, 1e6), 2
    while power_of(high, difference, level) < power:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, difference, level) >= power else (middle, high)
    return high


def _check_plan(level: float, power: float) -> None:
    check(0 < level < 1, f"level={level} must be above 0 and below 1")
    check(1 - level < power < 1, f"power={power} must be above 1 - level and below 1")


# -- verdicts -----------------------------------------------------------------------------------------------------------


def conclude(
    comparisons: Mapping[str, Paired], level: float = 0.95, power: float = 0.8, wanted: float | None = None
) -> dict[str, Conclusion]:
    """Return a verdict on each arm of a study; `wanted`: the smallest difference of interest, in units of the metric.

    - "better", "worse": Holm's p over all arms is at most 1 - level. p is of the paired t test: where an arm changes nothing,
      differences are symmetric, and there t is exact (normal), conservative (heavy tails) or less than a point above its level
      (bounded or coarse metrics), and it can reject from few seeds. The sign-flip test is valid for any such noise but never
      rejects below 6 seeds (8 for 5 arms): it stands beside as a check, and decides where t is undefined, as with diverged
      runs.
    - "too few seeds": no rejection, and the study was not able to detect `wanted` with this power. Judged by `wanted` and
      the standard deviation, never by the observed difference: the power of that is p in other words. By default `wanted` is
      two standard deviations of the differences, which one arm detects from 5 seeds.
    - "no difference found": no rejection, and the seeds were enough; differences below `wanted` may exist.

    The number of seeds holds at 1 - (1 - level) / arms, the level of Holm's first step. Where the sign-flip test decides,
    the seeds that would do are the fewest at which it can reject.
    """
    _check_plan(level, power)
    check(wanted is None or 0 < wanted < math.inf, f"wanted={wanted} must be a difference above 0")
    adjusted = holm([paired.p for paired in comparisons.values()])
    strict = 1 - (1 - level) / max(1, len(comparisons))
    conclusions = {}
    for (name, comparison), p in zip(comparisons.items(), adjusted):
        verdict: Verdict = "no difference found"
        needed, runs = None, comparison.n + comparison.diverged
        if p <= 1 - level and comparison.direction:
            verdict = "better" if comparison.direction > 0 else "worse"
        elif runs < 2 or comparison.direction or comparison.sd > 0:  # else equal in every pair
            needed = _needed(comparison, strict, power, wanted)
            verdict = "too few seeds" if needed is None or needed > runs else verdict
        conclusions[name] = Conclusion(verdict, float(p), needed if verdict == "too few seeds" else None, comparison)
    return conclusions


def _needed(comparison: Paired, level: float, power: float, wanted: float | None) -> int | None:
    """Return the seeds at which a comparison could be decided; None where `wanted` has no standard deviation to be set in."""
    if comparison.diverged or comparison.sd == 0:
        return 1 + math.ceil(math.log2(1 / (1 - level)) - ROUNDING)  # 2 / 2^n at most 1 - level
    return seeds_needed(LARGE if wanted is None else wanted / comparison.sd, level, power)
