"""Errors and tests of significance against scipy, closed forms and known coverage."""

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
    summed = st.bootstrap_sums(st.as_rows(values), {"m": st.total}, replicates=4000)["m"]
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


def difference(x, y, axis):
    return (x - y).mean(axis)


def test_permutation_agrees_with_scipy():
    rng = np.random.default_rng(5)
    a = rng.normal(0.4, 1, 9)
    b = rng.normal(0, 1, 9)
    expected = stats.permutation_test((a, b), difference, permutation_type="samples", vectorized=True)
    assert st.paired_permutation(a, b) == pytest.approx(expected.pvalue)  # all 512 exchanges
    a, b = rng.normal(0.3, 1, 60), rng.normal(0, 1, 60)
    expected = stats.permutation_test(
        (a, b), difference, permutation_type="samples", vectorized=True, rng=rng, n_resamples=20_000
    )
    assert st.paired_permutation(a, b) == pytest.approx(expected.pvalue, abs=0.015)


def test_comparisons_of_equal_and_different_systems():
    rng = np.random.default_rng(6)
    a = rng.random(200)
    same = st.paired_bootstrap(a, a)
    assert (same.difference.value, same.p_value, st.paired_permutation(a, a)) == (0, 1, 1)
    b = a - 0.3 + 0.1 * rng.random(200)
    different = st.paired_bootstrap(a, b)
    assert different.difference.value == pytest.approx((a - b).mean())
    assert different.p_value < 0.002
    assert st.paired_permutation(a, b) < 0.001


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(7)
    pairs = [rng.normal(size=(2, 40)) for _ in range(200)]
    drawn = [st.paired_bootstrap(*pair, replicates=300).p_value for pair in pairs]
    traded = [st.paired_permutation(*pair, replicates=300) for pair in pairs]
    for found in (np.array(drawn), np.array(traded)):
        assert 0.01 < (found < 0.05).mean() < 0.11
        assert 0.4 < found.mean() < 0.6


def test_a_corpus_formula_is_compared():
    """Rows with a formula: F1 from counts, not a mean of per-example scores."""
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 4, (2, 10, 3)).astype(float)

    def f1(s):
        return 2 * s[..., 0] / (s[..., 1] + s[..., 2] + 1)

    found = st.paired_permutation(a, b, f1)
    signs = (np.arange(1024)[:, None] >> np.arange(10)) & 1
    first = np.where(signs[..., None], a, b).sum(1)
    second = np.where(signs[..., None], b, a).sum(1)
    observed = abs(f1(a.sum(0)) - f1(b.sum(0)))
    assert found == pytest.approx((abs(f1(first) - f1(second)) >= observed - 1e-12).mean())
    assert st.paired_bootstrap(a, b, f1).difference.value == pytest.approx(f1(a.sum(0)) - f1(b.sum(0)))


@pytest.mark.parametrize(("up", "down"), [(8, 2), (0, 0), (5, 5), (0, 9), (600, 500)])
def test_sign_test(up, down):
    expected = stats.binomtest(up, up + down).pvalue if up + down else 1.0
    assert st.sign_test(up, down) == pytest.approx(expected)


def test_undefined_figures():
    found = st.bootstrap_sums(np.zeros((3, 2)), {"m": st.total})["m"]
    assert math.isnan(found.value)
    assert st.flat({"m": found}) == {"m": None, "m_error": None}


def test_one_example_has_no_spread():
    one = np.array([0.5])
    assert math.isnan(st.bootstrap_sums(st.as_rows(one), {"m": st.total})["m"].error)
    assert math.isnan(st.bootstrap_sums(st.as_rows(one), {"m": st.total}, counts=[1])["m"].error)
    assert math.isnan(st.bootstrap(lambda i: {"m": one[i].mean()}, 1)["m"].error)
    assert math.isnan(st.jackknife(lambda i: {"m": one[i].mean()}, 1)["m"].error)
    rare = st.jackknife(lambda i: {"m": 1.0} if 0 in i else {}, 3)["m"]  # one batch alone has what is measured
    assert (rare.value, rare.error) == (1.0, 0.0)
    assert st.paired_bootstrap(one, one - 0.2).p_value == st.paired_permutation(one, one - 0.2) == 1


def test_mistakes_are_told():
    with pytest.raises(UserError, match="3 truths, 2 predictions"):
        st.same_length(truths=[1, 2, 3], predictions=[1, 2])
    with pytest.raises(UserError, match="nothing to measure"):
        st.same_length(truths=[], predictions=[])
    with pytest.raises(UserError, match="undefined"):
        st.mean([])
    with pytest.raises(UserError, match="no examples"):
        st.bootstrap_sums(np.zeros((0, 2)), {})
