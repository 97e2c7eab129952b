"""Contents of a report: everything computed from a study and its outcomes, before it is written in any format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lm.studies.report.analyses import Curve, Grid, Scaling, curve_figures, curve_of, grid_of, scale
from lm.studies.report.compare import Aggregate, Comparison, aggregate, check_baseline, compare
from lm.studies.report.warnings import Notice, Spent, spent, warn
from lm.studies.results import Outcome
from lm.studies.study import Study, differences


@dataclass(frozen=True)
class Contents:
    """All parts of a report."""

    study: Study
    outcomes: tuple[Outcome, ...]  # in the order of arms and seeds
    comparisons: tuple[Comparison, ...]
    notices: tuple[Notice, ...]
    budgets: tuple[Spent, ...]
    fields: Mapping[str, Mapping[str, str]]  # config fields that differ: {path: {arm: value}}
    tasks: Mapping[str, str]
    aggregates: tuple[Aggregate, ...]
    grid: Grid | None
    scaling: Scaling | None
    curves: Mapping[str, Mapping[str, Curve]]  # by figure and arm

    @property
    def finished(self) -> int:
        """The number of arms times seeds that are done."""
        return sum(outcome.state == "done" for outcome in self.outcomes)

    @property
    def planned(self) -> int:
        """The number of arms times seeds."""
        return len(self.study.arms) * len(self.study.seeds)

    def floor(self, metric: str) -> tuple[float, float]:
        """Return mean and standard deviation over the baseline's seeds: the noise floor of a figure."""
        runs = next(row.runs for row in self.comparisons if row.metric == metric and not row.baseline)
        return runs.mean, runs.sd

    def of(self, metric: str) -> list[Comparison]:
        """Return the comparisons by one figure, the baseline first."""
        return [row for row in self.comparisons if row.metric == metric]


def gather(study: Study, outcomes: Sequence[Outcome]) -> Contents:
    """Compute all parts of a report; a pure function. Raises UserError where all runs of the baseline have failed."""
    check_baseline(study, outcomes)
    places = {arm.name: k for k, arm in enumerate(study.arms)}
    ordered = sorted((one for one in outcomes if one.arm in places), key=lambda one: (places[one.arm], one.seed))
    comparisons = compare(study, ordered)
    tasks, aggregates = aggregate(study, ordered)
    curves: dict[str, dict[str, Curve]] = {}
    for figure in curve_figures(study, ordered):
        each = {arm.name: curve_of(ordered, arm.name, figure) for arm in study.arms}
        curves[figure] = {name: curve for name, curve in each.items() if curve is not None}
    return Contents(
        study,
        tuple(ordered),
        tuple(comparisons),
        tuple(warn(study, ordered, comparisons)),
        tuple(spent(study, ordered)),
        differences(study.arms) if len(study.arms) > 1 else {},
        tasks,
        tuple(aggregates),
        grid_of(study) if any(math.isfinite(row.runs.mean) for row in comparisons) else None,
        scale(study, ordered),
        curves,
    )


# -- numbers as text ----------------------------------------------------------------------------------------------------


def decimals(sd: float, mean: float) -> int:
    """Return the decimal places at which a standard deviation has two digits; of a single value four significant digits."""
    size = sd if math.isfinite(sd) and sd > 0 else abs(mean) / 100
    return min(8, max(0, 1 - math.floor(math.log10(size)))) if math.isfinite(size) and size > 0 else 3


def fixed(value: float, places: int, signed: bool = False) -> str:
    """Format a number with decimal places, "–" where it is undefined."""
    return f"{value:{'+' if signed else ''},.{places}f}".replace("-", "−") if math.isfinite(value) else "–"


def probability(p: float) -> str:
    """Format a p value: .034, < .001."""
    if not math.isfinite(p):
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"


def amount(value: float) -> str:
    """Format a size with three digits: 1.24M, 6.3e+17."""
    if not math.isfinite(value):
        return "–"
    for size, unit in ((1e15, ""), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (0, "")):
        if abs(value) >= size:
            return f"{value / (size if unit else 1):.3g}{unit}"
    return f"{value:.3g}"
