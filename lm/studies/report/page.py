"""The report as one HTML page that fetches nothing: tables, curves, Pareto fronts, samples, commands."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from lm.console import duration
from lm.pages import render
from lm.strict_json import dump_json, parse_json
from lm.studies.report.analyses import AXES, front
from lm.studies.report.compare import Comparison
from lm.studies.report.contents import Contents, amount, decimals, fixed
from lm.studies.report.document import about, method, noise
from lm.studies.report.tables import (
    budget_table,
    field_table,
    grid_table,
    result_table,
    scaling_lines,
    search_table,
    summary,
    task_table,
)
from lm.studies.study import higher_is_better

TEMPLATE = Path(__file__).with_name("page.html")
LONG = 2000  # characters shown of a sample
DIGITS = 6  # significant, of numbers in curves
COSTS = ("flops", "params", "tokens", "seconds")
KINDS = {"better": "good", "worse": "bad", "too few seeds": "miss"}
Cell = TypeVar("Cell")


@dataclass(frozen=True)
class Row:
    """A row of the table of results: cells as text, keys to sort by, and the interval as shares of the drawing's width."""

    cells: Sequence[str]
    keys: Sequence[float | str | None]
    kind: str  # CSS class of the verdict
    interval: Mapping[str, float] | None


@dataclass(frozen=True)
class Shade:
    """A cell of the heat map: text, share of full colour, and arm."""

    text: str
    share: float
    arm: str


def page(contents: Contents) -> str:
    """Render the page of a study."""
    study = contents.study
    values = {
        "title": study.name or "Study",
        "question": study.question,
        "summary": summary(contents),
        "about": about(contents),
        "method": method(study),
        "results": [
            (
                metric,
                noise(contents, metric),
                higher_is_better(metric),
                verdict_second(result_table(contents, metric)[0]),
                result_rows(contents, metric),
            )
            for metric in study.metrics
        ],
        "heats": heats(contents),
        "notices": [notice.text for notice in contents.notices],
        "budgets": budget_table(contents),
        "fields": field_table(contents) if contents.fields else None,
        "tasks": task_table(contents) if contents.aggregates else None,
        "searches": search_table(contents),
        "scaling": scaling_lines(contents.scaling) if contents.scaling else [],
        "samples": samples(contents),
        "runs": run_rows(contents),
        "data": parse_json(dump_json(data_of(contents)), "data"),  # without NaN
    }
    return render(TEMPLATE, values)


def verdict_second(cells: Sequence[Cell]) -> list[Cell]:
    """Move the last cell, the verdict, behind the arm: a phone shows the first two columns."""
    return [cells[0], cells[-1], *cells[1:-1]]


def result_rows(contents: Contents, metric: str) -> list[Row]:
    """Lay out the comparisons by one figure."""
    rows = contents.of(metric)
    _, sd = contents.floor(metric)
    floor = sd if math.isfinite(sd) else 0.0
    ends = [-floor, floor, *(x for row in rows if row.difference for x in _ends(row) if math.isfinite(x))]
    left, width = min(ends), (max(ends) - min(ends)) or 1.0
    laid = []
    for row, cells in zip(rows, result_table(contents, metric)[1], strict=True):
        difference = row.difference
        interval = None
        if difference and math.isfinite(difference.mean_difference):
            low, high = _ends(row)
            places = {"zero": 0.0, "low": low, "high": high, "mean": difference.mean_difference}
            interval = {name: round(4 + 92 * (x - left) / width, 2) for name, x in places.items()}
            interval["floor"] = round(92 * floor / width, 2)
        keys: list[float | str | None] = [
            row.arm, row.runs.n, row.runs.mean, difference.mean_difference if difference else None, row.p,
            difference.p_sign if difference else None, row.verdict or row.note,
        ]  # fmt: skip
        known = [None if isinstance(key, float) and math.isnan(key) else key for key in keys]
        laid.append(Row(verdict_second(cells), verdict_second(known), KINDS.get(row.verdict, ""), interval))
    return laid


def _ends(row: Comparison) -> tuple[float, float]:
    """Return the interval, its middle twice where it is undefined."""
    d = row.difference
    assert d is not None
    return (d.low, d.high) if math.isfinite(d.low) else (d.mean_difference, d.mean_difference)


def heats(contents: Contents) -> Sequence[tuple[str, str, Sequence[str], Sequence[tuple[str, Sequence[Shade]]]]]:
    """Lay out the heat map of a two-way grid for each figure: (figure, caption, columns, rows); the better, the stronger."""
    grid = contents.grid
    if grid is None:
        return []
    found = []
    for metric in contents.study.metrics:
        _, texts = grid_table(contents, metric)
        means = {row.arm: row.runs.mean for row in contents.of(metric)}
        finite = [mean for mean in means.values() if math.isfinite(mean)]
        low, high = min(finite, default=0.0), max(finite, default=0.0)
        rows = []
        for down, cells in zip(grid.rows, texts, strict=True):
            shades = []
            for across, text in zip(grid.columns, cells[1:], strict=True):
                arm = grid.arms[down, across]
                share = (means[arm] - low) / (high - low) if high > low and math.isfinite(means[arm]) else 0.0
                shades.append(Shade(text, round(share if higher_is_better(metric) else 1 - share, 3) if finite else 0.0, arm))
            rows.append((down, shades))
        found.append((metric, f"Down: {grid.down}; across: {grid.across}. {noise(contents, metric)}", grid.columns, rows))
    return found


def samples(contents: Contents) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lay the samples of all arms side by side: [(prompt, [(arm, text)])], of the first seed that has some."""
    chosen: dict[str, dict[str, str]] = {}
    for outcome in contents.outcomes:
        if outcome.samples and outcome.arm not in chosen:
            chosen[outcome.arm] = {prompt: _shortened(text) for prompt, text in outcome.samples}
    prompts = dict.fromkeys(prompt for texts in chosen.values() for prompt in texts)
    return [(prompt, [(arm, texts.get(prompt, "")) for arm, texts in chosen.items()]) for prompt in prompts]


def _shortened(text: str) -> str:
    return text if len(text) <= LONG else text[:LONG] + " …"


def command(run: Path) -> str:
    """Return the command that repeats the run of a folder, in a folder of its own."""
    return shlex.join(
        ("python", "-m", "lm.main", f"--config={run / 'config.json'}", f"--workdir={Path('runs') / f'repeat-{run.name}'}")
    )


def run_rows(contents: Contents) -> Sequence[tuple[Sequence[str], Sequence[float | str], Sequence[tuple[str, str]]]]:
    """Lay out the runs: (cells, keys to sort by, [(stage, command)])."""
    metric = contents.study.metrics[0]
    mean, sd = contents.floor(metric)
    rows = []
    for one in contents.outcomes:
        value = one.figures.get(metric, math.nan)
        cells = (
            one.arm, str(one.seed), one.state, f"{one.steps:,}", amount(one.tokens), amount(one.flops), amount(one.params),
            duration(one.seconds), fixed(value, decimals(sd, mean)),
        )  # fmt: skip
        key = value if math.isfinite(value) else math.inf
        keys = (one.arm, one.seed, one.state, one.steps, one.tokens, one.flops, one.params, one.seconds, min(key, 1e300))
        rows.append((cells, keys, [(stage, command(run)) for stage, run in one.folders.items() if one.state != "missing"]))
    return rows


# -- data of the script -------------------------------------------------------------------------------------------------


def data_of(contents: Contents) -> dict[str, object]:
    """Return the numbers that the page's script draws."""
    study = contents.study
    return {
        "arms": [arm.name for arm in study.arms],
        "baseline": study.baseline,
        "axes": AXES,
        "metrics": study.metrics,
        "costs": COSTS,
        "figures": [name for name, curves in contents.curves.items() if curves],
        "curves": {
            name: {
                arm: {
                    **{axis: _digits(curve.x[axis]) for axis in AXES},
                    "mean": _digits(curve.mean),
                    "sd": _digits(curve.sd),
                    "seeds": curve.seeds.tolist(),
                }
                for arm, curve in curves.items()
            }
            for name, curves in contents.curves.items()
            if curves
        },
        "ends": {metric: _ends_of(contents, metric) for metric in study.metrics},
        "scaling": _scaling(contents),
    }


def _scaling(contents: Contents) -> dict[str, object] | None:
    """Return the points and fitted lines of a scaling study."""
    scaling = contents.scaling
    if scaling is None or not scaling.groups():
        return None
    unit, xname = ("FLOPs", "parameters") if scaling.law is None else ("parameters", "tokens")
    return {
        "xname": xname,
        "yname": scaling.metric,
        "sd": contents.floor(scaling.metric)[1],
        "groups": [
            {
                "name": f"{amount(group.size)} {unit}",
                "points": list(zip(_digits(group.x), _digits(group.y))),
                "fit": list(zip(_digits(group.line_x), _digits(group.line_y))),
            }
            for group in scaling.groups()
        ],
    }


def _digits(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _ends_of(contents: Contents, metric: str) -> dict[str, object]:
    """Return mean, standard deviation and costs of each arm, and the Pareto front by each cost."""
    runs = {row.arm: row.runs for row in contents.of(metric) if row.baseline in ("", contents.study.baseline)}
    shown = [one for one in contents.budgets if math.isfinite(runs[one.arm].mean)]
    mean, sd = contents.floor(metric)
    better = higher_is_better(metric)
    return {
        "floor": [mean, sd],
        "better": "higher" if better else "lower",
        "points": [
            {"arm": one.arm, "mean": runs[one.arm].mean, "sd": runs[one.arm].sd, "seeds": runs[one.arm].n, **one.amounts}
            for one in shown
        ],
        "fronts": {
            cost: [shown[i].arm for i in front([o.amounts[cost] for o in shown], [runs[o.arm].mean for o in shown], better)]
            for cost in COSTS
        },
    }
