"""Two-way grids of arms, curves over seeds, Pareto fronts and scaling laws: what a report draws beside its comparisons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm.errors import UserError
from lm.evaluation.metrics.statistics import Figure
from lm.studies.report.compare import incomparable, results_of
from lm.studies.results import Outcome
from lm.studies.scaling import ScalingLaw, bootstrap_law, extrapolation_error, isoflop, power_law
from lm.studies.study import Study, differences

AXES = ("steps", "tokens", "flops", "seconds")
POINTS = 300  # of a curve that are drawn
SAME = 0.02  # relative difference of FLOPs within one isoFLOP budget


# -- grids --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Two fields whose combinations are the arms: values down, values across, and the arm of each cell."""

    down: str
    across: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    arms: Mapping[tuple[str, str], str]


def grid_of(study: Study) -> Grid | None:
    """Return the two fields whose every combination is one arm; None where there are none.

    Further fields may differ if one of the two determines them, such as a type and its options.
    """
    fields = differences(study.arms)
    names = [arm.name for arm in study.arms]
    for down, across in itertools.combinations(fields, 2):
        cells = {(fields[down][name], fields[across][name]): name for name in names}
        rows, columns = _values(fields[down]), _values(fields[across])
        if min(len(rows), len(columns)) < 2 or len(cells) != len(names) or len(cells) != len(rows) * len(columns):
            continue
        others = [row for path, row in fields.items() if path not in (down, across)]
        if all(_determines(fields[down], row) or _determines(fields[across], row) for row in others):
            return Grid(down, across, rows, columns, cells)
    return None


def _values(row: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of a field in the order of numbers, or of arms."""
    values = tuple(dict.fromkeys(row.values()))
    try:
        return tuple(sorted(values, key=float))
    except ValueError:
        return values


def _determines(cause: Mapping[str, str], effect: Mapping[str, str]) -> bool:
    return len({(cause[name], effect[name]) for name in cause}) == len(set(cause.values()))


# -- curves -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Mean and standard deviation over the seeds of an arm (S,), and their number, at the steps where a figure was logged."""

    x: Mapping[str, np.ndarray]  # by AXES
    mean: np.ndarray
    sd: np.ndarray  # NaN for a single seed
    seeds: np.ndarray


def curve_of(outcomes: Sequence[Outcome], arm: str, figure: str) -> Curve | None:
    """Average an arm's curves, also of runs that have not ended; None where no run has the figure.

    At most POINTS steps, evenly spaced, the last among them. A value that is not finite makes the mean so: a gap.
    """
    at: dict[int, list[tuple[float, ...]]] = {}
    for outcome in outcomes:
        for point in outcome.curve if outcome.arm == arm else ():
            if figure in point.figures:
                row = (*(float(getattr(point, axis)) for axis in AXES), float(point.figures[figure]))
                at.setdefault(point.steps, []).append(row)
    if not at:
        return None
    steps = sorted(at)
    kept = sorted(set(np.linspace(len(steps) - 1, 0, min(POINTS, len(steps))).round().astype(int).tolist()))
    rows = [np.array(at[steps[k]], float) for k in kept]
    means = np.array([row.mean(0) for row in rows])
    with np.errstate(invalid="ignore"):
        sd = np.array([row[:, -1].std(ddof=1) if len(row) > 1 else math.nan for row in rows])
    x = {axis: means[:, k] for k, axis in enumerate(AXES)}
    return Curve(x, means[:, -1], sd, np.array([len(row) for row in rows]))


def curve_figures(study: Study, outcomes: Sequence[Outcome]) -> list[str]:
    """List the figures that have curves: those of the study first, then the training loss and evaluations."""
    logged = sorted({name for outcome in outcomes for point in outcome.curve for name in point.figures})
    shown = [name for name in logged if "/loss" in name or name.startswith("eval/") or name == "train/lr"]
    first = [name for name in study.metrics if name in logged]
    return list(dict.fromkeys(first + [name for name in ("eval/validation/loss", "train/loss") if name in logged] + shown))


# -- Pareto fronts ------------------------------------------------------------------------------------------------------


def front(costs: Sequence[float], values: Sequence[float], higher_is_better: bool) -> list[int]:
    """Return the indices of the points that no other beats in cost and value, cheapest first; NaN is on no front."""
    best, found = math.inf, []
    sign = -1 if higher_is_better else 1
    known = [i for i in range(len(costs)) if math.isfinite(costs[i]) and math.isfinite(values[i])]
    for i in sorted(known, key=lambda i: (costs[i], sign * values[i])):
        if sign * values[i] < best:
            best = sign * values[i]
            found.append(i)
    return found


# -- scaling ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budgeted:
    """Runs of one isoFLOP budget and the optimum of their parabola, NaN where they do not enclose one."""

    flops: float
    params: np.ndarray
    losses: np.ndarray
    optimum: float
    loss: float
    curvature: float


@dataclass(frozen=True)
class Group:
    """Measured points and the fitted line of one network size or one budget, `size`; no line where nothing was fitted."""

    size: float
    x: np.ndarray
    y: np.ndarray
    line_x: np.ndarray
    line_y: np.ndarray


@dataclass(frozen=True)
class Scaling:
    """A fitted law with intervals, or isoFLOP parabolas with their power law; `refused`: why there is neither."""

    metric: str
    params: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    law: ScalingLaw | None = None
    constants: Mapping[str, Figure] | None = None
    extrapolation: float = math.nan
    budgets: tuple[Budgeted, ...] = ()
    power: tuple[float, float] = (math.nan, math.nan)
    refused: str = ""

    def groups(self) -> list[Group]:
        """Return the lines of a drawing: loss against tokens for each size under a law, against parameters for each budget."""
        found = []
        if self.law is not None:
            span = np.geomspace(self.tokens.min(), self.tokens.max(), 60)
            for size in np.unique(self.params):
                own = self.params == size
                found.append(Group(float(size), self.tokens[own], self.losses[own], span, self.law.loss(size, span)))
        for one in self.budgets:
            known = math.isfinite(one.optimum)
            span = np.geomspace(one.params.min(), one.params.max(), 60) if known else np.array([])
            fit = one.loss + one.curvature * np.log10(span / one.optimum) ** 2
            found.append(Group(one.flops, one.params, one.losses, span, fit))
        return found


def scale(study: Study, outcomes: Sequence[Outcome]) -> Scaling | None:
    """Fit the law that `Study.scaling` asks for to the last values of the first figure of all finished runs."""
    if not study.scaling:
        return None
    metric = study.metrics[0]
    names = [a.name for a in study.arms if not incomparable(study, outcomes, a.name, study.baseline, metric)]
    runs = []
    for one in outcomes:
        value = results_of([one], one.arm, metric).get(one.seed, math.nan)
        if one.arm in names and math.isfinite(value) and min(one.params, one.tokens, one.flops) > 0:
            runs.append((float(one.params), one.tokens, one.flops, value))
    params, tokens, flops, losses = np.array(runs, float).reshape(-1, 4).T
    if study.scaling == "isoflop":
        budgets = tuple(_budgets(params, flops, losses))
        power = power_law([one.flops for one in budgets], [one.optimum for one in budgets])
        return Scaling(metric, params, tokens, losses, budgets=budgets, power=power)
    try:
        constants = bootstrap_law(params, tokens, losses)
        error = extrapolation_error(params, tokens, losses)
    except UserError as refusal:
        return Scaling(metric, params, tokens, losses, refused=str(refusal))
    law = ScalingLaw(*(constants[name].value for name in ("E", "A", "B", "alpha", "beta")))
    return Scaling(metric, params, tokens, losses, law, constants, error)


def _budgets(params: np.ndarray, flops: np.ndarray, losses: np.ndarray) -> list[Budgeted]:
    """Group runs of equal FLOPs and fit a parabola to each group."""
    found = []
    rest = list(np.argsort(flops, kind="stable"))
    while rest:
        group = np.array([k for k in rest if flops[k] <= flops[rest[0]] * (1 + SAME)])
        rest = rest[len(group) :]
        minimum = isoflop(params[group], losses[group])
        optimum = (minimum.parameters, minimum.loss, minimum.curvature) if minimum else (math.nan,) * 3
        found.append(Budgeted(float(flops[group].mean()), params[group], losses[group], *optimum))
    return found
