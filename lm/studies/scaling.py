"""Scaling laws of the loss in parameters and tokens, and compute-optimal sizes (Hoffmann et al. 2022).

L(N, D) = E + A / N^alpha + B / D^beta is approach 3 of that paper; `isoflop` is approach 2. Arrays with the suffix _R hold
one value for each measured run, or for each checkpoint of runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from lm.errors import UserError, check
from lm.evaluation.metrics.statistics import Figure, resampled

Values = Sequence[float] | np.ndarray
FLOPS = 6.0  # per parameter and token: forward and backward
# The paper's grid of starts: logs of A and of B, log of E, the two exponents.
LOGS, FLOORS, EXPONENTS = (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2)


@dataclass(frozen=True)
class ScalingLaw:
    """Constants of the law, and the Huber objective at which a fit ended (a sum over points)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    objective: float = math.nan

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Return the predicted loss in nats."""
        n, d = np.asarray(parameters, float), np.asarray(tokens, float)
        return self.E + self.A / n**self.alpha + self.B / d**self.beta

    @property
    def exponent(self) -> float:
        """The power of compute with which the optimal number of parameters grows."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return parameters and tokens with the lowest loss at 6 N D = flops; NaN where a term does not fall."""
        if min(self.A, self.B, self.alpha, self.beta) <= 0:
            return math.nan, math.nan
        product = math.log(flops / FLOPS)
        balance = math.log(self.alpha) + math.log(self.A) - math.log(self.beta) - math.log(self.B)
        log_n = (balance + self.beta * product) / (self.alpha + self.beta)
        return _exp(log_n), _exp(product - log_n)


@dataclass(frozen=True)
class _Points:
    """Logs of sizes about their means, which decouples coefficients from exponents, and of losses."""

    n_R: np.ndarray
    d_R: np.ndarray
    y_R: np.ndarray
    centre: tuple[float, float]

    def terms(self, theta: np.ndarray) -> np.ndarray:
        """Return the logs of the three terms, (3, ..., R), for theta (5, ...) = (a, b, e, alpha, beta)."""
        a, b, e, alpha, beta = theta[..., None]
        return np.stack(np.broadcast_arrays(a - alpha * self.n_R, b - beta * self.d_R, e))

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """Return predicted less measured log losses."""
        return np.asarray(np.logaddexp.reduce(self.terms(theta), 0) - self.y_R)

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Return the derivatives of the residuals, (R, 5): shares of the three terms, times the log size."""
        logs = self.terms(theta)
        n, d, e = np.exp(logs - np.logaddexp.reduce(logs, 0))
        return np.stack([n, d, e, -n * self.n_R, -d * self.d_R], 1)

    def fit(self, start: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
        """Minimise the Huber objective from a start; return it with theta."""
        found = least_squares(
            self.residuals, start, self.jacobian, loss="huber", f_scale=delta, x_scale="jac",
            ftol=1e-12, xtol=1e-10, gtol=1e-12, max_nfev=500,
        )  # fmt: skip
        return float(found.cost), found.x

    def theta(self, law: ScalingLaw) -> np.ndarray:
        """Return the inverse of `law`."""
        a, b, e = (math.log(constant) for constant in (law.A, law.B, law.E))
        return np.array([a - law.alpha * self.centre[0], b - law.beta * self.centre[1], e, law.alpha, law.beta])

    def law(self, theta: np.ndarray, objective: float) -> ScalingLaw:
        """Return the constants at sizes that are not centred."""
        a, b, e, alpha, beta = map(float, theta)
        return ScalingLaw(_exp(e), _exp(a + alpha * self.centre[0]), _exp(b + beta * self.centre[1]), alpha, beta, objective)


def _exp(log: float) -> float:
    return math.exp(min(max(log, -700.0), 700.0))  # constants that the points do not determine may overflow or vanish


def fit_law(parameters_R: Values, tokens_R: Values, losses_R: Values, delta: float = 1e-3, starts: int = 16) -> ScalingLaw:
    """Fit the law by the sum of Huber losses of log residuals, from the best `starts` of the paper's grid of 4,500.

    Diverged runs, with losses that are not finite, are left out. The minimiser is scipy's trust-region least squares with
    its Huber loss, the same objective: on the log sum of exponentials L-BFGS, the paper's choice, stops early unless sizes
    are centred. Raises UserError for points that cannot determine five constants.
    """
    points = _points(parameters_R, tokens_R, losses_R)
    objective, theta = min((points.fit(start, delta) for start in _starts(points, delta, starts)), key=lambda pair: pair[0])
    return points.law(theta, objective)


def _points(parameters_R: Values, tokens_R: Values, losses_R: Values) -> _Points:
    """Check the measurements and take logs."""
    n, d, loss = (np.asarray(values, float).ravel() for values in (parameters_R, tokens_R, losses_R))
    check(
        len(n) == len(d) == len(loss),
        f"{len(n)} sizes, {len(d)} tokens, {len(loss)} losses: give one of each per point",
    )
    check(bool((n > 0).all() and (d > 0).all() and not (loss <= 0).any()), "parameters, tokens and losses must be above 0")
    kept = np.isfinite(loss)
    n, d, y = np.log(n[kept]), np.log(d[kept]), np.log(loss[kept])
    kinds = len(np.unique(n)), len(np.unique(d))
    check(
        len(np.unique(n + 1j * d)) > 5 and min(kinds) > 1 and sum(kinds) > 4,
        f"{len(y)} finite losses at {kinds[0]} sizes and {kinds[1]} numbers of tokens do not determine the law's five "
        "constants: measure 6 different pairs or more, of 2 sizes by 3 numbers of tokens at least",
    )
    check(
        abs(np.corrcoef(n, d)[0, 1]) < 0.999,
        "tokens are proportional to a power of parameters in all runs, which cannot tell their terms apart: vary both",
    )
    return _Points(n - n.mean(), d - d.mean(), y, (float(n.mean()), float(d.mean())))


def _starts(points: _Points, delta: float, count: int) -> list[np.ndarray]:
    """Return the most promising starts: the best coefficients for each floor and pair of exponents, the best of those."""
    grid = np.array(list(itertools.product(FLOORS, EXPONENTS, EXPONENTS, LOGS, LOGS)), float).T
    e, alpha, beta, a, b = grid
    theta = np.stack([a - alpha * points.centre[0], b - beta * points.centre[1], e, alpha, beta])
    size = np.abs(points.residuals(theta))
    objective = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(-1).reshape(-1, len(LOGS) ** 2)
    best = objective.argmin(1) + np.arange(len(objective)) * len(LOGS) ** 2
    order = best[np.argsort(objective.min(1), kind="stable")]
    return [theta[:, i] for i in order[: max(1, count)]]


def bootstrap_law(
    parameters_R: Values,
    tokens_R: Values,
    losses_R: Values,
    runs_R: Sequence[object] | np.ndarray | None = None,
    budgets: Sequence[float] = (),
    replicates: int = 200,
    seed: int = 0,
    delta: float = 1e-3,
    starts: int = 16,
) -> dict[str, Figure]:
    """Fit the law and bootstrap it over runs: E, A, B, alpha, beta, exponent, and parameters@C and tokens@C of budgets.

    `runs_R` names the training run of each point, by default each its own: the checkpoints of one run err together. Each
    resample is fitted from the whole fit's constants. Resamples that determine no law are drawn again.
    """
    columns = [np.asarray(values, float).ravel() for values in (parameters_R, tokens_R, losses_R)]
    law, groups = fit_law(parameters_R, tokens_R, losses_R, delta, starts), _groups(columns, runs_R)
    rng = np.random.default_rng(seed)
    drawn: list[dict[str, float]] = []
    for _ in range(20 * replicates):
        if len(drawn) == replicates:
            break
        rows = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        try:
            points = _points(*(column[rows] for column in columns))
        except UserError:
            continue
        objective, theta = points.fit(points.theta(law), delta)
        drawn.append(_constants(points.law(theta, objective), budgets))
    whole = _constants(law, budgets)
    return {name: resampled(value, np.array([constants[name] for constants in drawn])) for name, value in whole.items()}


def _constants(law: ScalingLaw, budgets: Sequence[float]) -> dict[str, float]:
    constants = {name: getattr(law, name) for name in ("E", "A", "B", "alpha", "beta", "exponent")}
    for budget in budgets:
        constants[f"parameters@{budget:g}"], constants[f"tokens@{budget:g}"] = law.optimum(budget)
    return constants


def _groups(columns: Sequence[np.ndarray], runs_R: Sequence[object] | np.ndarray | None) -> list[np.ndarray]:
    """Return the indices of the finite points of each run."""
    count = len(columns[2])
    names = list(range(count)) if runs_R is None else list(runs_R)
    check(len(names) == count, f"each point needs its run: {count} points, {len(names)} runs")
    members: dict[object, list[int]] = {}
    for i in np.flatnonzero(np.isfinite(columns[2])):
        members.setdefault(names[i], []).append(int(i))
    return [np.array(rows) for rows in members.values()]


def extrapolation_error(
    parameters_R: Values,
    tokens_R: Values,
    losses_R: Values,
    runs_R: Sequence[object] | np.ndarray | None = None,
    delta: float = 1e-3,
    starts: int = 16,
) -> float:
    """Fit without the run of most compute and return the relative error of its predicted final loss.

    Above 0 where the law expects a higher loss than was measured. NaN where the remaining runs determine no law.
    """
    columns = [np.asarray(values, float).ravel() for values in (parameters_R, tokens_R, losses_R)]
    _points(*columns)
    groups = _groups(columns, runs_R)
    compute = columns[0] * columns[1]
    largest = max(groups, key=lambda rows: compute[rows].max())
    final = largest[compute[largest].argmax()]
    rest = np.concatenate([rows for rows in groups if rows is not largest] or [np.array([], int)])
    try:
        n, d, loss = (column[rest] for column in columns)
        law = fit_law(n, d, loss, delta, starts)
    except UserError:
        return math.nan
    return float(law.loss(columns[0][final], columns[1][final]) / columns[2][final] - 1)


# -- isoFLOP ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minimum:
    """Optimal parameters and loss at one budget, and the curvature of the parabola in log10 of parameters."""

    parameters: float
    loss: float
    curvature: float


def isoflop(parameters_R: Values, losses_R: Values) -> Minimum | None:
    """Fit a parabola in log10 of parameters to runs of equal compute and return its minimum.

    None where the runs do not enclose a minimum: fewer than three sizes with finite losses, no upward curvature, or the
    vertex or the lowest measured loss at the edge of the grid or outside. A parabola extrapolates badly.
    """
    n, loss = (np.asarray(values, float).ravel() for values in (parameters_R, losses_R))
    check(len(n) == len(loss), f"isoFLOP needs equally many sizes and losses: {len(n)} and {len(loss)}")
    check(bool((n > 0).all()), "parameters must be above 0")
    kept = np.isfinite(loss)
    x, loss = np.log10(n[kept]), loss[kept]
    if len(np.unique(x)) < 3 or x[loss.argmin()] in (x.min(), x.max()):
        return None
    centre = x.mean()
    c2, c1, c0 = np.polyfit(x - centre, loss, 2)
    if c2 <= 0:
        return None
    vertex = centre - c1 / (2 * c2)
    if not x.min() < vertex < x.max():
        return None
    return Minimum(float(10**vertex), float(c0 - c1**2 / (4 * c2)), float(c2))


def power_law(flops_R: Values, optima_R: Values) -> tuple[float, float]:
    """Fit optima = coefficient * flops^exponent by least squares of logs; return (coefficient, exponent).

    NaN for fewer than two budgets. Budgets without an optimum (NaN) are left out.
    """
    flops, optima = (np.asarray(values, float).ravel() for values in (flops_R, optima_R))
    check(len(flops) == len(optima), f"a power law needs equally many budgets and optima: {len(flops)} and {len(optima)}")
    kept = np.isfinite(optima) & (optima > 0) & (flops > 0)
    if len(np.unique(flops[kept])) < 2:
        return math.nan, math.nan
    exponent, log = np.polyfit(np.log(flops[kept]), np.log(optima[kept]), 1)
    return _exp(float(log)), float(exponent)
