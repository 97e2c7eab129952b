"""Bootstrap of small samples and of many tasks against scipy, definitions and published values."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lm.errors import UserError
from lm.studies import resampling as rs

X = np.array([0.61, 0.63, 0.58, 0.66, 0.70, 0.64, 0.59, 0.68, 0.62, 0.65])
SCORES = np.array([[0.1, 0.5, 0.9], [0.2, 0.6, 0.8], [0.3, 0.55, 0.85], [0.15, 0.65, 0.95]])
pytestmark = pytest.mark.filterwarnings("error")


def levels(values: list[float], drawn: list[float], statistic, alpha: float = 0.025) -> tuple[float, float]:
    """Compute the quantile levels of BCa from their definition, one value at a time."""
    value = statistic(values)
    below = sum(d < value - 1e-12 for d in drawn) + sum(abs(d - value) <= 1e-12 for d in drawn) / 2
    z0 = stats.norm.ppf(below / len(drawn))
    without = [statistic([v for j, v in enumerate(values) if j != i]) for i in range(len(values))]
    gaps = [sum(without) / len(without) - w for w in without]
    a = sum(g**3 for g in gaps) / (6 * sum(g**2 for g in gaps) ** 1.5)
    ends = [z0 + stats.norm.ppf(p) for p in (alpha, 1 - alpha)]
    return tuple(float(stats.norm.cdf(z0 + end / (1 - a * end))) for end in ends)


def test_bca_of_all_resamples():
    values = [1.0, 2.0, 4.0]
    drawn = [sum(r) / 3 for r in itertools.product(values, repeat=3)]
    expected = levels(values, drawn, lambda v: sum(v) / len(v))
    assert expected == pytest.approx((0.0408062, 0.9865340), abs=1e-7)
    found = rs.bca(values)
    assert (found.value, found.error) == pytest.approx((7 / 3, np.std(drawn, ddof=1)), abs=1e-9)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, expected), abs=1e-9)


def test_bca_agrees_with_scipy_and_published_intervals():
    for statistic, low, high in ((np.mean, 0.614, 0.659), (np.median, 0.605, 0.665)):
        found = rs.bca(X, statistic, seed=3)
        again = stats.bootstrap((X,), statistic, method="BCa", n_resamples=9999, rng=np.random.default_rng(3))
        interval = again.confidence_interval
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1.5e-3)


def test_bca_covers_skewed_means():
    """Normal intervals of skewed means cover too little; those of BCa lie further toward the long tail."""
    rng, inside = np.random.default_rng(0), 0
    for seed in range(200):
        found = rs.bca(rng.exponential(size=30), replicates=999, seed=seed)
        inside += found.low < 1 < found.high
    assert inside / 200 == pytest.approx(0.93, abs=0.05)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0], [1.0, math.nan, 2.0]])
def test_undefined_intervals(values):
    found = rs.bca(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    known = bool(values) and all(map(math.isfinite, values))
    assert found.value == values[0] if known else math.isnan(found.value)


def test_undefined_bca_of_the_minimum():
    found = rs.bca(X, np.min)
    assert found.value == 0.58
    assert not found.low > found.value


def test_interquartile_mean():
    found = rs.iqm(SCORES)
    assert found.value == pytest.approx(0.5666667, abs=1e-7)
    assert found.low < found.value < found.high
    assert found == rs.iqm(SCORES)
    # Without spread between runs, resampling within tasks changes nothing, however much tasks differ.
    same = rs.iqm(np.tile([[0.1, 0.5, 0.6, 0.9]], (5, 1)))
    assert (same.low, same.high, same.error) == pytest.approx((same.value, same.value, 0))
    assert math.isnan(rs.iqm([[1.0, math.nan]]).value)
    with pytest.raises(UserError, match="runs, tasks"):
        rs.iqm(np.zeros(3))


def test_interval_of_the_interquartile_mean_covers():
    """Runs about task means that are known; the bootstrap of 10 runs is somewhat short."""
    rng = np.random.default_rng(0)
    tasks = np.linspace(0, 1, 8)
    truth = rs.iqm(rng.normal(tasks, 0.1, (20_000, 8)), replicates=2).value
    found = [rs.iqm(rng.normal(tasks, 0.1, (10, 8)), replicates=300, seed=seed) for seed in range(200)]
    assert np.mean([figure.low < truth < figure.high for figure in found]) == pytest.approx(0.93, abs=0.05)


def test_probability_of_improvement():
    x, y = np.array([[0.2, 0.4, 0.6, 0.8]]).T, np.array([[0.1, 0.4, 0.5]]).T
    assert rs.probability_of_improvement(x, y, True).value == pytest.approx(0.7083333, abs=1e-7)
    assert rs.probability_of_improvement(x, y, False).value == pytest.approx(1 - 0.7083333, abs=1e-7)
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.3, 1, (7, 5)).round(1), rng.normal(0, 1, (6, 5)).round(1)
    found = rs.probability_of_improvement(x, y, True)
    u = [stats.mannwhitneyu(x[:, m], y[:, m]).statistic / 42 for m in range(5)]
    assert found.value == pytest.approx(np.mean(u), abs=1e-9)
    assert found.low < found.value < found.high


def test_diverged_runs_never_win():
    nan = math.nan
    for higher in (True, False):
        assert rs.probability_of_improvement([[nan], [nan]], [[1.0], [2.0]], higher).value == 0
        assert rs.probability_of_improvement([[1.0]], [[nan]], higher).value == 1
        assert rs.probability_of_improvement([[nan]], [[math.inf]], higher).value == 0.5
    with pytest.raises(UserError, match="same tasks: 2 and 1"):
        rs.probability_of_improvement([[1.0, 2.0]], [[1.0]], True)
