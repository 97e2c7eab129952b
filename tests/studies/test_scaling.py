"""Scaling laws: published constants and optima, recovery from simulated runs, minima at the edge."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from lm.errors import UserError
from lm.studies import scaling as sc

HOFFMANN = sc.ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28)
BESIROGLU = sc.ScalingLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
N, D = (axis.ravel() for axis in np.meshgrid(np.array([1, 2, 4, 8, 16]) * 1e6, np.array([2, 8, 32]) * 1e7, indexing="ij"))
pytestmark = pytest.mark.filterwarnings("error")


def measured(seed: int, noise: float = 0.003) -> np.ndarray:
    return BESIROGLU.loss(N, D) * np.exp(noise * np.random.default_rng(seed).normal(size=N.size))


def test_published_losses_and_optima():
    assert [float(law.loss(70e9, 1.4e12)) for law in (HOFFMANN, BESIROGLU)] == pytest.approx([1.936645, 1.973882], abs=1e-6)
    assert [float(law.loss(1e8, 2e9)) for law in (HOFFMANN, BESIROGLU)] == pytest.approx([3.485874, 3.438537], abs=1e-6)
    assert [law.exponent for law in (HOFFMANN, BESIROGLU)] == pytest.approx([0.451613, 0.512612], abs=1e-6)
    for law, ratios in ((HOFFMANN, (25.67, 40.08, 92.65)), (BESIROGLU, (25.70, 22.88, 18.39))):
        for flops, ratio in zip((1e18, 1e20, 5.76e23), ratios):
            n, d = law.optimum(flops)
            assert d / n == pytest.approx(ratio, abs=0.006)
            assert 6 * n * d == pytest.approx(flops)
            best = minimize_scalar(lambda x, c=flops, law=law: float(law.loss(10**x, c / 6 / 10**x)), bounds=(6, 13))
            assert best.x == pytest.approx(math.log10(n), abs=1e-4)
    assert all(math.isnan(x) for x in sc.ScalingLaw(1, 2, 3, 0.3, -0.1).optimum(1e20))


def test_fit_recovers_the_law():
    loss = BESIROGLU.loss(N, D)
    assert (loss[0], loss[-1]) == pytest.approx((10.215317, 4.936348), abs=1e-6)
    law = sc.fit_law(N, D, loss, starts=5)
    assert [law.E, law.A, law.B, law.alpha, law.beta] == pytest.approx([1.8172, 482.01, 2085.43, 0.3478, 0.3658], rel=1e-6)
    assert law.objective < 1e-9


def test_fit_reaches_the_papers_minimum():
    """L-BFGS on the objective as the paper writes it, from the truth, finds no lower value; one run is an outlier."""
    loss = measured(0)
    loss[7] *= 1.2
    law = sc.fit_law(N, D, loss, starts=5)

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        r = np.abs(np.log(np.exp(a - alpha * np.log(N)) + np.exp(b - beta * np.log(D)) + np.exp(e)) - np.log(loss))
        return float(np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4)).sum())

    found = np.array([math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta])
    assert objective(found) == pytest.approx(law.objective, rel=1e-9)
    truth = np.array([math.log(482.01), math.log(2085.43), math.log(1.8172), 0.3478, 0.3658])
    for start in (found, truth):
        best = minimize(lambda t: 1e6 * objective(t), start, method="Nelder-Mead", options={"maxiter": 3000, "adaptive": True})
        assert law.objective <= 1e-6 * best.fun * (1 + 1e-6)
    assert law.alpha == pytest.approx(0.3478, abs=0.05)  # least squares would follow the outlier


def test_bootstrap_and_extrapolation():
    loss = measured(1)
    figures = sc.bootstrap_law(N, D, loss, budgets=(1e18,), replicates=40, starts=4)
    law = sc.fit_law(N, D, loss, starts=4)
    n, d = BESIROGLU.optimum(1e18)
    truth = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658, "exponent": BESIROGLU.exponent}
    truth |= {"parameters@1e+18": n, "tokens@1e+18": d}
    assert figures.keys() == truth.keys()
    assert figures["alpha"].value == law.alpha
    for name, figure in figures.items():
        assert figure.low < figure.value < figure.high
        assert abs(figure.value - truth[name]) < 4 * figure.error, name
    assert abs(sc.extrapolation_error(N, D, loss, starts=4)) < 0.02
    bent = np.where(np.arange(15) == 14, loss * 1.1, loss)  # the largest run ends above its law
    assert sc.extrapolation_error(N, D, bent, starts=4) == pytest.approx(1 / 1.1 - 1, abs=0.02)


def test_bootstrap_draws_whole_runs():
    """Three checkpoints of each of five sizes: their errors are common, so that intervals are wider than of points."""
    common = np.exp(0.002 * np.random.default_rng(2).normal(size=5))[np.searchsorted(np.unique(N), N)]
    loss = BESIROGLU.loss(N, D) * common
    by_run = sc.bootstrap_law(N, D, loss, runs_R=N, replicates=20, starts=4)["alpha"].error
    by_point = sc.bootstrap_law(N, D, loss, replicates=20, starts=4)["alpha"].error
    assert by_run > by_point > 0
    # Without the largest run, not only its last checkpoint.
    expected = sc.fit_law(N[N < 16e6], D[N < 16e6], loss[N < 16e6], starts=4).loss(16e6, 32e7) / loss[-1] - 1
    assert sc.extrapolation_error(N, D, loss, runs_R=N, starts=4) == pytest.approx(expected, abs=1e-9)


def test_points_that_determine_no_law():
    loss = BESIROGLU.loss(N, D)
    diverged = np.where(np.arange(15) == 3, math.nan, loss)
    assert sc.fit_law(N, D, diverged, starts=2).alpha == pytest.approx(0.3478, abs=1e-5)
    with pytest.raises(UserError, match="5 finite losses"):
        sc.fit_law(N[:5], D[:5], loss[:5])
    with pytest.raises(UserError, match="at 1 sizes and 6 numbers"):
        sc.fit_law(np.full(6, 1e6), D[:6] + np.arange(6), loss[:6])
    with pytest.raises(UserError, match="vary both"):
        sc.fit_law(np.arange(1, 9) * 1e6, np.arange(1, 9) * 2e7, np.arange(9, 1, -1))
    with pytest.raises(UserError, match="above 0"):
        sc.fit_law(N, D, -loss)
    assert math.isnan(sc.extrapolation_error(N[:6], D[:6], loss[:6]))


# -- isoFLOP ------------------------------------------------------------------------------------------------------------


def test_published_parabola():
    found = sc.isoflop(np.array([1, 2, 4, 8, 16]) * 1e7, [3.42, 3.31, 3.27, 3.30, 3.40])
    assert (found.curvature, found.parameters, found.loss) == pytest.approx((0.38623222, 4.203027e7, 3.2698214), rel=1e-6)


@pytest.mark.parametrize(
    "losses",
    [
        [3.5, 3.4, 3.3, 3.2, 3.15],  # falls to the edge
        [3.1, 3.2, 3.3, 3.4, 3.5],
        [3.3, 3.34, 3.35, 3.33, 3.3],  # downward
        [3.3, 3.3, 3.3, 3.3, 3.3],
        [3.29, 3.31, 3.30, 3.35, 3.40],  # lowest at the edge
        [3.42, math.nan, 3.27, math.inf, math.nan],  # two left
    ],
)
def test_no_minimum_at_the_edge(losses):
    assert sc.isoflop(np.array([1, 2, 4, 8, 16]) * 1e7, losses) is None


def test_optima_of_budgets_follow_the_law():
    """Approach 2 on losses of approach 3's law finds its exponent; budgets without a minimum are left out."""
    budgets = np.array([1e18, 1e19, 1e20, 1e21])
    optima = []
    for flops in budgets:
        grid = BESIROGLU.optimum(flops)[0] * np.geomspace(0.4, 2.5, 7)
        minimum = sc.isoflop(grid, BESIROGLU.loss(grid, flops / 6 / grid))
        optima.append(minimum.parameters)
        assert minimum.parameters == pytest.approx(BESIROGLU.optimum(flops)[0], rel=0.01)
    coefficient, exponent = sc.power_law([*budgets, 1e22], [*optima, math.nan])
    assert exponent == pytest.approx(BESIROGLU.exponent, abs=1e-3)
    assert coefficient * 1e20**exponent == pytest.approx(BESIROGLU.optimum(1e20)[0], rel=0.01)
    assert all(map(math.isnan, sc.power_law([1e18], [1e8])))
