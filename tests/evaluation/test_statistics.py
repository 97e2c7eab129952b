"""Errors against scipy, closed forms and known coverage."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from lm.errors import UserError
from lm.evaluation.metrics import statistics as st


def test_flat_is_json():
    figures = {"f1/PER": st.Figure.of(0.5, 0.1), "ppl": st.Figure.of(math.inf, math.nan)}
    found = st.flat(figures)
    assert found == {"f1/PER": 0.5, "f1/PER_error": 0.1, "ppl": None, "ppl_error": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert st.flat(figures, intervals=True)["f1/PER_low"] == pytest.approx(0.5 - 0.196, abs=1e-4)


@pytest.mark.parametrize(("successes", "count"), [(0, 5), (1, 7), (30, 100), (7, 7)])
def test_proportion(successes, count):
    found = st.proportion(successes, count)
    p = successes / count
    assert found.error == pytest.approx(math.sqrt(p * (1 - p) / count))
    interval = stats.binomtest(successes, count).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_mean():
    values = np.random.default_rng(0).normal(size=50)
    found = st.mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(stats.sem(values))
    assert math.isnan(st.mean([3.0]).error)


@pytest.mark.parametrize("counts", [None, np.full(400, 1)])
def test_bootstrap_sums_agrees_with_scipy(counts):
    rng = np.random.default_rng(1)
    x, y = rng.exponential(size=(2, 400))
    ratio = stats.bootstrap(
        (x, y),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=rng,
    )
    rows = np.stack([x, y], 1)
    found = st.bootstrap_sums(rows, {"r": lambda s: s[..., 0] / s[..., 1]}, replicates=4000, counts=counts)["r"]
    assert found.value == pytest.approx(x.sum() / y.sum())
    assert found.error == pytest.approx(ratio.standard_error, rel=0.06)
    interval = ratio.confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.015)


def test_three_ways_to_the_error_of_a_mean():
    values = np.random.default_rng(2).normal(size=300)
    exact = st.mean(values)
    rows = np.stack([values, np.ones(300)], 1)
    summed = st.bootstrap_sums(rows, {"m": lambda s: s[..., 0] / s[..., 1]}, replicates=4000)["m"]
    drawn = st.bootstrap(lambda i: {"m": values[i].mean()}, 300, replicates=4000)["m"]
    assert summed.error == pytest.approx(exact.error, rel=0.06)
    assert drawn.error == pytest.approx(exact.error, rel=0.06)
    whole = st.jackknife(lambda i: {"m": values[i].mean()}, 300, groups=300)["m"]
    assert whole.error == pytest.approx(exact.error)  # leaving out one at a time gives s / sqrt(n) exactly
    grouped = [st.jackknife(lambda i: {"m": values[i].mean()}, 300, seed)["m"].error for seed in range(30)]
    assert np.mean(grouped) == pytest.approx(exact.error, rel=0.1)


def test_intervals_cover():
    """95 % intervals of the bootstrap hold the truth about 95 times of 100."""
    rng = np.random.default_rng(3)
    inside = 0
    for seed in range(300):
        x = rng.normal(1, 1, (80, 2))
        found = st.bootstrap_sums(x, {"r": lambda s: s[..., 0] - s[..., 1]}, seed, replicates=400)["r"]
        inside += (found.low < 0) == (found.high > 0)
    assert 0.90 <= inside / 300 <= 0.98


def test_same_seed_same_figures():
    rows = np.random.default_rng(4).normal(size=(30, 2))
    a, b, c = (st.bootstrap_sums(rows, {"m": lambda s: s[..., 0]}, seed)["m"] for seed in (7, 7, 8))
    assert a == b != c


def test_pieces_of_replicates_do_not_matter(monkeypatch):
    """Large sets are resampled a few replicates at a time."""
    size = 700_000
    draws = list(st._draws(size, 0, 5))
    assert [len(d) for d in draws] == [2, 2, 1]
    assert all((d.sum(1) == size).all() for d in draws)


def test_undefined_figures():
    found = st.bootstrap_sums(np.zeros((3, 2)), {"m": lambda s: st.divide(s[..., 0], s[..., 1], math.nan)})["m"]
    assert math.isnan(found.value)
    assert st.flat({"m": found}) == {"m": None, "m_error": None}


def test_one_example_has_no_spread():
    one = np.array([0.5])
    for counts in (None, [1]):
        assert math.isnan(st.bootstrap_sums(one[:, None], {"m": lambda s: s[..., 0]}, counts=counts)["m"].error)
    assert math.isnan(st.bootstrap(lambda i: {"m": one[i].mean()}, 1)["m"].error)
    assert math.isnan(st.jackknife(lambda i: {"m": one[i].mean()}, 1)["m"].error)
    rare = st.jackknife(lambda i: {"m": 1.0} if 0 in i else {}, 3)["m"]  # one batch alone has what is measured
    assert (rare.value, rare.error) == (1.0, 0.0)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="3 truths, 2 predictions"):
        st.same_length(truths=[1, 2, 3], predictions=[1, 2])
    with pytest.raises(UserError, match="nothing to measure"):
        st.same_length(truths=[], predictions=[])
    with pytest.raises(UserError, match="undefined"):
        st.mean([])
    with pytest.raises(UserError, match="no examples"):
        st.bootstrap_sums(np.zeros((0, 2)), {})
