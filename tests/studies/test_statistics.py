"""Tests, corrections and power against scipy, published values and simulated studies."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lm.errors import UserError
from lm.studies import statistics as st

A = [2.912, 2.934, 2.921, 2.908, 2.927, 2.915]
B = [2.901, 2.929, 2.909, 2.903, 2.911, 2.910]
NOISE = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(2, shape),
    "skewed": lambda rng, shape: rng.lognormal(0, 1.5, shape),
    "coarse": lambda rng, shape: np.round(rng.normal(0, 0.7, shape)),
}
pytestmark = pytest.mark.filterwarnings("error")


def differences(values: list[float]) -> st.Paired:
    return st.paired(values, np.zeros(len(values)), higher_is_better=True)


# -- one arm ------------------------------------------------------------------------------------------------------------


def test_published_pairs():
    found = st.paired(B, A, higher_is_better=False)
    assert (found.n, found.diverged, found.direction) == (6, 0, 1)
    assert (found.mean_difference, found.sd, found.p_t) == pytest.approx((-0.009, 0.00469042, 0.00533665), abs=1e-8)
    assert (found.low, found.high) == pytest.approx((-0.0139223, -0.0040777), abs=1e-7)
    assert found.p_sign == 2 / 64
    second = differences([-0.011, -0.005, -0.012, 0.002, -0.016, -0.005])
    assert (second.p_t, second.p_sign) == (pytest.approx(0.0306831, abs=1e-7), 4 / 64)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_paired_agrees_with_scipy(n, level):
    a, b = np.random.default_rng(n).normal([[3.0], [2.8]], 0.3, (2, n)).round(2)
    found = st.paired(a, b, higher_is_better=True, level=level)
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(level)
    assert found.p_t == pytest.approx(test.pvalue, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    exact = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=np.inf
    )
    assert found.p_sign == pytest.approx(exact.pvalue, abs=1e-9)


def test_sign_flip_counts_ties_at_any_scale():
    """By enumeration in whole numbers, where sums are exact."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        whole = rng.integers(-3, 5, 7)
        sums = np.array(list(itertools.product((-1, 1), repeat=7))) @ whole
        expected = np.mean(abs(sums) >= abs(whole.sum()))
        assert {st.sign_flip(whole * scale) for scale in (1, 0.1, 1e-30, 1e30)} == {expected}


def test_sampled_sign_flip():
    values = np.random.default_rng(1).normal(0.2, 1, 21)
    sampled = st.sign_flip(values)
    # All 2^21 sums, as pairs of a sum of the first 10 and one of the last 11.
    halves = [np.array(list(itertools.product((-1, 1), repeat=len(part)))) @ part for part in (values[:10], values[10:])]
    upper = np.sort(halves[1])
    total = abs(values.sum()) - 1e-12
    hits = sum(len(upper) - np.searchsorted(upper, total - s) + np.searchsorted(upper, -total - s, "right") for s in halves[0])
    exact = hits / 2**21
    assert 0.005 < exact < 0.2
    assert sampled == pytest.approx(exact, abs=5 * math.sqrt(exact / 100_000))
    assert sampled == st.sign_flip(values)
    assert st.sign_flip(np.ones(400), flips=999) == 1 / 1000


def test_sample():
    found = st.sample([2.0, math.nan, 3.0, math.inf, 4.0])
    assert found == st.Sample(3, 2, 3.0, 1.0)
    assert math.isnan(st.sample([1.0]).sd)
    assert math.isnan(st.sample([math.nan]).mean)


def test_equal_and_constant_differences():
    equal = st.paired(A, A, higher_is_better=False)
    assert (equal.direction, equal.p, equal.sd, equal.low, equal.high) == (0, 1.0, 0.0, 0.0, 0.0)
    constant = st.paired(np.array(A) + 0.1, A, higher_is_better=False)  # differences differ by rounding
    assert (constant.direction, constant.sd, constant.p) == (-1, 0.0, 2 / 64)
    assert math.isnan(constant.p_t)


def test_short_and_huge_values():
    assert (differences([]).p, differences([]).n) == (1.0, 0)
    single = differences([1.0])
    assert (single.p, single.direction, single.mean_difference) == (1.0, 1, 1.0)
    assert all(math.isnan(x) for x in (single.sd, single.low, single.high, single.p_t))
    huge = differences([1e300, 2e300, 3e300])
    assert huge.p == pytest.approx(differences([1.0, 2.0, 3.0]).p, abs=1e-12)
    with pytest.raises(UserError, match="same seeds: 2 and 3"):
        st.paired([1, 2], [1, 2, 3], higher_is_better=True)


@pytest.mark.parametrize("higher", [True, False])
def test_diverged_runs_lose(higher):
    worse = st.paired([math.nan] * 6, A, higher)
    assert (worse.n, worse.diverged, worse.direction, worse.p) == (0, 6, -1, 2 / 64)
    assert st.paired(A, [math.inf] * 6, higher).direction == 1
    both = st.paired([math.nan, 1, 2], [math.inf, 2, 4], higher)
    assert (both.direction, both.p) == (-1 if higher else 1, 0.5)  # both diverged: a tie
    # Five wins by little against one divergence: behind in sum, and the t test of the survivors does not count.
    sign = 1 if higher else -1
    mixed = st.paired([math.nan, *(sign * x for x in (1, 1.1, 1.2, 1.1, 1.3))], [0.0] * 6, higher)
    assert mixed.p_t < 0.001
    assert (mixed.direction, mixed.p) == (-1, 1.0)


# -- several arms, power ------------------------------------------------------------------------------------------------


def test_published_corrections():
    p = [0.003, 0.02, 0.04, 0.01]
    assert st.holm(p) == pytest.approx([0.012, 0.04, 0.04, 0.03], abs=1e-12)


def test_holm_against_closed_testing():
    """An arm is rejected where Bonferroni rejects every set of hypotheses that holds it (Marcus et al. 1976)."""
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 5):
        p = rng.uniform(size=m) ** 3
        sets = [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
        expected = [max(min(1, len(s) * min(p[list(s)])) for s in sets if i in s) for i in range(m)]
        assert st.holm(p) == pytest.approx(expected, abs=1e-12)


def test_corrections_of_undefined_and_no_p():
    for adjust, expected in ((st.holm, [0.03, math.nan, 0.08]),):
        assert adjust([0.01, math.nan, 0.04]) == pytest.approx(expected, nan_ok=True)
        assert adjust([]).shape == (0,)


def test_published_detectable_differences():
    table = {3: 3.2640, 4: 2.1279, 5: 1.6820, 6: 1.4345, 8: 1.1560, 10: 0.9960, 16: 0.7495}
    assert {n: st.detectable(n) for n in table} == pytest.approx(table, abs=5.1e-5)
    assert st.detectable(1) == math.inf
    for n, difference in table.items():
        assert st.seeds_needed(difference + 1e-3) == n
        assert st.seeds_needed(-difference + 1e-3) == n + 1 or n >= 10


@pytest.mark.parametrize(("n", "difference"), [(2, 20.0), (3, 3.0), (6, 1.2), (40, 0.4)])
def test_power_against_the_noncentral_t(n, difference):
    t, shift = stats.t.ppf(0.975, n - 1), difference * math.sqrt(n)
    # Where scipy's noncentral t is NaN: conditional on the standard deviation, the mean is normal.
    s, weights = np.polynomial.legendre.leggauss(200)
    root = (s + 1) / 2 * stats.chi.ppf(1 - 1e-15, n - 1)
    rejected = stats.norm.sf(t * root / math.sqrt(n - 1) - shift) + stats.norm.cdf(-t * root / math.sqrt(n - 1) - shift)
    expected = weights @ (rejected * stats.chi.pdf(root, n - 1)) * root.max() / (s.max() + 1)
    assert st.power_of(n, difference) == pytest.approx(expected, abs=1e-9)


def test_seeds_needed_at_the_ends():
    assert st.seeds_needed(0.0) is None
    assert st.seeds_needed(math.nan) is None
    assert st.seeds_needed(math.inf) == 2
    # Many seeds: the normal distribution.
    exact = ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / 1e-4) ** 2
    assert st.seeds_needed(1e-4) == pytest.approx(exact, rel=1e-5)
    with pytest.raises(UserError, match=r"power=0\.01"):
        st.seeds_needed(1.0, power=0.01)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_power_as_planned(n):
    """A study sized by `detectable` reaches its verdict as often as planned; standard error of the rate: 0.9 points."""
    rng = np.random.default_rng(n)
    studies = rng.normal(st.detectable(n), 1, (2000, n))
    verdicts = [st.conclude({"arm": differences(study)})["arm"].verdict for study in studies]
    assert verdicts.count("better") / 2000 == pytest.approx(0.8, abs=0.03)


# -- verdicts -----------------------------------------------------------------------------------------------------------


def verdict(values: list[float], arms: int = 1, wanted: float | None = None) -> tuple[str, int | None]:
    """Conclude on differences beside other arms that are level with the baseline."""
    others = {str(i): differences([1.0, -1.0, 0.5, -0.5, 0.1]) for i in range(1, arms)}
    found = st.conclude({"arm": differences(values), **others}, wanted=wanted)["arm"]
    return found.verdict, found.seeds


def test_verdicts():
    assert verdict([1.0, 1.1, 0.9]) == ("better", None)
    assert verdict([-1.0, -1.1, -0.9]) == ("worse", None)
    mild = [1.0, -0.4, 0.7, 0.9, 0.6, -0.1]  # p .08
    assert verdict(mild) == ("no difference found", None)
    sd = float(np.std(mild, ddof=1))
    assert verdict(mild, wanted=0.5) == ("too few seeds", st.seeds_needed(0.5 / sd))
    assert verdict(mild, wanted=1.45 * sd) == ("no difference found", None)  # 6 seeds detect 1.4345
    assert verdict(mild[:4]) == ("too few seeds", 5)
    # p .02 of one arm: not after Holm over five.
    clear = [0.9, 0.2, 0.8, 1.3, 0.1, 0.6]
    assert 0.01 < differences(clear).p < 0.05
    assert verdict(clear) == ("better", None)
    assert verdict(clear, arms=5) == ("too few seeds", 7)


def test_verdicts_without_t():
    assert verdict([]) == ("too few seeds", 5)
    assert verdict([3.0]) == ("too few seeds", 5)
    assert verdict([3.0], wanted=1.0) == ("too few seeds", None)  # no standard deviation yet
    assert verdict([0.0, 0.0]) == ("no difference found", None)
    assert verdict([0.5] * 3) == ("too few seeds", 6)
    assert verdict([0.5] * 6) == ("better", None)
    assert verdict([0.5] * 6, arms=5) == ("too few seeds", 8)
    assert verdict([0.5] * 8, arms=5) == ("better", None)
    assert verdict([math.nan] * 6) == ("worse", None)
    assert verdict([math.nan, 1.0, 1.1, 1.2]) == ("too few seeds", 6)
    assert st.conclude({}) == {}


def test_seeds_that_would_do_are_more_than_there_are():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, arms = rng.integers(1, 9), rng.integers(1, 4)
        wanted = None if rng.random() < 0.3 else float(rng.uniform(0.2, 4))
        found, seeds = verdict(list(rng.normal(size=n).round(1)), int(arms), wanted)
        assert (seeds is None) == (found != "too few seeds" or (n == 1 and wanted is not None))
        assert seeds is None or seeds > n


@pytest.mark.parametrize(
    ("noise", "arms"), [("normal", 1), ("normal", 4), ("heavy tails", 4), ("skewed", 1), ("coarse", 1), ("coarse", 3)]
)
def test_null_studies(noise, arms):
    """Of 2,000 studies of arms that change nothing, at most 5 % call an arm better, or (by both tests) different."""
    rng, studies = np.random.default_rng(0), 2000
    seeds = rng.integers(3, 9, studies)
    runs = NOISE[noise](rng, (studies, arms + 1, 8))
    better = different = flipped = 0
    for n, (baseline, *others) in zip(seeds, runs):
        comparisons = {str(i): st.paired(arm[:n], baseline[:n], higher_is_better=False) for i, arm in enumerate(others)}
        words = {conclusion.verdict for conclusion in st.conclude(comparisons).values()}
        better += "better" in words
        different += bool(words & {"better", "worse"})
        flipped += min(st.holm([c.p_sign for c in comparisons.values()])) <= 0.05
    limit = 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / studies)  # 99.5 % of tests of exactly this level stay below
    assert better / studies <= 0.05
    assert different / studies <= limit
    assert flipped / studies <= limit


@pytest.mark.parametrize("n", range(3, 9))
def test_sign_flip_keeps_its_level_under_heavy_tails(n):
    """All sign vectors of given sizes are equally likely: p at most x in at most x of them, for any sizes."""
    sizes = np.abs(np.random.default_rng(n).standard_cauchy(n))
    p = np.array([st.sign_flip(np.array(signs) * sizes) for signs in itertools.product((-1, 1), repeat=n)])
    assert all(np.mean(p <= x) <= x + 1e-12 for x in (*p, 0.05, 0.1))
    assert np.mean(p <= p.min()) == p.min() == 2 / 2**n
