"""Bootstrap of small samples and of scores on many tasks: BCa, interquartile mean, probability of improvement.

Scores of many tasks are arrays (runs, tasks), suffix _RM; runs are resampled within each task, as they differ by chance and
tasks do not (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", sections 4.1 to
4.3). With fewer than about 8 runs bootstrap intervals are too short: `lm.studies.statistics.paired` holds its level there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
from scipy import stats

from lm.errors import check
from lm.evaluation.metrics.statistics import Figure, resampled

ENUMERATED = 6  # values up to which all resamples are listed: 6^6 = 46,656
Scores = Sequence[Sequence[float]] | np.ndarray


def bca(
    values_N: Sequence[float] | np.ndarray,
    statistic: Callable[..., np.ndarray] = np.mean,
    level: float = 0.95,
    replicates: int = 9999,
    seed: int = 0,
) -> Figure:
    """Return a statistic with its bias-corrected and accelerated bootstrap interval (Efron and Tibshirani 1993, chapter 14).

    The statistic takes `axis`. Up to 6 values all resamples are listed, so that no sampling error remains. The ends are
    NaN where the interval is undefined: a single value, a value that is not finite, or no spread among the resamples.
    """
    check(0 < level < 1, f"level={level} must be above 0 and below 1")
    values = np.asarray(values_N, float).ravel()
    n = len(values)
    if not n or not np.isfinite(values).all():
        return Figure(math.nan, math.nan, math.nan, math.nan)
    value = float(statistic(values, axis=-1))
    if n < 2 or np.ptp(values) == 0:
        return Figure(value, math.nan, math.nan, math.nan)
    listed = None
    if n <= ENUMERATED:
        every = np.indices((n,) * n).reshape(n, -1).T
        listed = SimpleNamespace(bootstrap_distribution=np.asarray(statistic(values[every], axis=-1)))
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # of an undefined interval, which is NaN
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            (values,),
            statistic,
            vectorized=True,
            confidence_level=level,
            method="BCa",
            n_resamples=0 if listed else replicates,
            bootstrap_result=listed,
            rng=np.random.default_rng(seed),
        )
    ends = result.confidence_interval
    return Figure(value, float(result.standard_error), float(ends.low), float(ends.high))


def iqm(scores_RM: Scores, replicates: int = 2000, seed: int = 0) -> Figure:
    """Return the interquartile mean of all scores: the mean without the lowest and highest quarter, rounded down.

    NaN where a score is not finite: a diverged run needs a score, such as that of chance, before it can be averaged.
    """
    scores = _table(scores_RM, "scores")
    if not np.isfinite(scores).all():
        return Figure(math.nan, math.nan, math.nan, math.nan)
    drawn = _resample(scores, replicates, np.random.default_rng(seed))
    return resampled(_middle(scores.reshape(1, -1))[0], _middle(drawn.reshape(len(drawn), -1)))


def _middle(scores_BX: np.ndarray) -> np.ndarray:
    return np.asarray(stats.trim_mean(scores_BX, 0.25, axis=1))


def probability_of_improvement(
    scores_RM: Scores, baseline_RM: Scores, higher_is_better: bool, replicates: int = 2000, seed: int = 0
) -> Figure:
    """Return the probability that a run of an arm beats one of the baseline on a random task; ties count one half.

    Per task this is Mann and Whitney's U over the number of pairs, (tasks in the same order, any number of runs). Values
    that are not finite are diverged runs: they lose to all finite scores and tie with each other.
    """
    pair = []
    for name, table in (("scores", scores_RM), ("baseline", baseline_RM)):
        values = _table(table, name)
        pair.append(np.where(np.isfinite(values), values if higher_is_better else -values, -np.inf))
    scores, baseline = pair
    tasks = scores.shape[1], baseline.shape[1]
    check(tasks[0] == tasks[1], f"the arms need the same tasks: {tasks[0]} and {tasks[1]}")
    rng = np.random.default_rng(seed)
    drawn = _wins(_resample(scores, replicates, rng), _resample(baseline, replicates, rng))
    return resampled(float(_wins(scores[None], baseline[None])[0]), drawn)


def _wins(scores_BRM: np.ndarray, baseline_BRM: np.ndarray) -> np.ndarray:
    """Average over tasks and pairs of runs; one run of the baseline at a time, which bounds the memory."""
    wins_B = np.zeros(len(scores_BRM))
    for run in range(baseline_BRM.shape[1]):
        other = baseline_BRM[:, run : run + 1]
        wins_B += ((scores_BRM > other) + 0.5 * (scores_BRM == other)).mean((1, 2))
    return wins_B / baseline_BRM.shape[1]


def _resample(scores_RM: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Draw runs with replacement, for each task on its own: (replicates, runs, tasks)."""
    runs, tasks = scores_RM.shape
    return scores_RM[rng.integers(0, runs, (replicates, runs, tasks)), np.arange(tasks)]


def _table(scores: Scores, name: str) -> np.ndarray:
    """Return scores as (runs, tasks); raise UserError for another shape or an empty one."""
    table = np.asarray(scores, float)
    check(table.ndim == 2 and table.size > 0, f"{name} must be an array (runs, tasks), not of shape {table.shape}")
    return table
