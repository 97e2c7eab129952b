"""Pictures of a report (PNG): differences with intervals, learning curves, a grid's heat map, Pareto fronts, scaling.

Each draws the noise floor, the standard deviation over the baseline's seeds, as a grey band where it has a place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm.evaluation.report.loss_curve import INK, MUTED, OTHERS, TRAIN, count, plain
from lm.evaluation.report.pictures import canvas, shortened
from lm.studies.report.analyses import AXES, front
from lm.studies.report.contents import Contents, amount, decimals, fixed
from lm.studies.study import higher_is_better

if TYPE_CHECKING:  # matplotlib takes a second to import; only drawing needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOISE = "#9a9a9a"
GOOD, BAD = OTHERS[1], OTHERS[0]
COLORS = (TRAIN, *OTHERS)
TITLES = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs", "seconds": "seconds", "params": "parameters"}


def draw(contents: Contents, folder: Path) -> list[str]:
    """Draw all pictures that the study has; return their names."""
    drawn = []
    for name, picture in DRAWERS.items():
        # Beside the target and renamed: a reader sees the old picture or the new.
        fresh = folder / f".{os.getpid()}.{name}"
        try:
            if picture(contents, fresh):
                os.replace(fresh, folder / name)
                drawn.append(name)
            else:  # of an earlier state of the study
                (folder / name).unlink(missing_ok=True)
        finally:
            fresh.unlink(missing_ok=True)
    return drawn


def safe(text: str) -> str:
    """Return a text that matplotlib shows as it is: "$" would start a formula."""
    return shortened(text, 60).replace("$", r"\$")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=13, color=INK, pad=10)


def _legend(figure: Figure) -> None:
    """Put one legend of all panels below them."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = max(1, min(4, 110 // (6 + max(map(len, names)))))
    figure.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False, labelcolor=INK)


def _differences(contents: Contents, png: Path) -> bool:
    """Draw the interval of each comparison, a panel a figure."""
    panels = {metric: [row for row in contents.of(metric) if row.difference] for metric in contents.study.metrics}
    panels = {metric: rows for metric, rows in panels.items() if rows}
    if not panels:
        return False
    heights = [1.0 + 0.42 * len(rows) for rows in panels.values()]
    with canvas(png, 9, sum(heights) + 0.4) as figure:
        all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (metric, rows) in zip(all_axes, panels.items()):
            _, sd = contents.floor(metric)
            if math.isfinite(sd):
                axes.axvspan(-sd, sd, color=NOISE, alpha=0.18, linewidth=0)
            axes.axvline(0, color=MUTED, linewidth=1)
            for k, row in enumerate(reversed(rows)):
                assert row.difference is not None
                color = {"better": GOOD, "worse": BAD}.get(row.verdict, MUTED)
                if math.isfinite(row.difference.low):
                    axes.plot([row.difference.low, row.difference.high], [k, k], color=color, linewidth=2.2)
                axes.plot([row.difference.mean_difference], [k], color=color, marker="o", markersize=7)
            names = [row.arm if row.baseline == contents.study.baseline else f"{row.arm} vs {row.baseline}" for row in rows]
            axes.set_yticks(range(len(rows)), [safe(name) for name in reversed(names)])
            axes.set_ylim(-0.6, len(rows) - 0.4)
            better = "right" if higher_is_better(metric) else "left"
            _title(axes, f"{safe(metric)}: difference to {safe(contents.study.baseline)}, better to the {better}")
            plain(axes)
            axes.tick_params(axis="y", colors=INK)
            axes.grid(axis="y", visible=False)
        all_axes[-1].set_xlabel(f"difference, {100 * (1 - contents.study.level):g} % interval; grey: noise floor", color=MUTED)
    return True


def _curves(contents: Contents, png: Path) -> bool:
    """Draw the first figure that has curves by steps, tokens, FLOPs and seconds, with bands of one standard deviation."""
    metric = next((name for name, curves in contents.curves.items() if curves), None)
    if metric is None:
        return False
    curves = contents.curves[metric]
    floor = contents.floor(metric) if metric in contents.study.metrics else (math.nan, math.nan)
    with canvas(png, 12, 8.4) as figure:
        for axes, axis in zip(figure.subplots(2, 2, sharey=True).flat, AXES):
            for k, arm in enumerate(contents.study.arms):
                if arm.name not in curves:
                    continue
                curve, color = curves[arm.name], COLORS[k % len(COLORS)]
                dashes = ("-", "--", ":")[k // len(COLORS) % 3]
                few = len(curve.mean) < 20
                axes.plot(curve.x[axis], curve.mean, dashes, color=color, linewidth=1.7, marker="o" if few else None,
                          markersize=3.5, label=safe(arm.name))  # fmt: skip
                axes.fill_between(
                    curve.x[axis], curve.mean - curve.sd, curve.mean + curve.sd, color=color, alpha=0.16, linewidth=0
                )
            if math.isfinite(floor[1]):
                axes.axhspan(floor[0] - floor[1], floor[0] + floor[1], color=NOISE, alpha=0.18, linewidth=0)
            axes.xaxis.set_major_formatter(lambda value, _: count(value))
            axes.set_xlabel(TITLES[axis], color=MUTED)
            plain(axes)
        _limit(figure.axes[0], [curve.mean for curve in curves.values()])
        _title(figure.axes[0], f"{safe(metric)}, mean ± sd over seeds; grey: noise floor")
        _legend(figure)
    return True


def _limit(axes: Axes, means: list[np.ndarray]) -> None:
    """Leave the first steps, which fall fast, out of the picture where they would flatten the rest."""
    every = np.concatenate(means)
    every = every[np.isfinite(every)]
    if len(every):
        low, high, usual = every.min(), every.max(), float(np.percentile(every, 75))
        top = high if high - low <= 3 * (usual - low) else usual + (usual - low)
        margin = 0.05 * (top - low) or 0.05 * abs(top) or 1.0
        axes.set_ylim(low - margin, top + margin)


def _heat(contents: Contents, png: Path) -> bool:
    """Draw the means of a two-way grid, a panel a figure."""
    grid = contents.grid
    if grid is None:
        return False
    from matplotlib.colors import LinearSegmentedColormap

    metrics = contents.study.metrics[:3]
    with canvas(png, 1.6 + (1.4 + 1.0 * len(grid.columns)) * len(metrics), 1.6 + 0.7 * len(grid.rows)) as figure:
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
            means = {row.arm: row.runs.mean for row in contents.of(metric)}
            cells = np.array([[means[grid.arms[down, across]] for across in grid.columns] for down in grid.rows])
            shades = ["#1d3a63", TRAIN, "#b9cce6", "#ffffff"]  # the better, the darker
            colors = LinearSegmentedColormap.from_list("means", shades[::-1] if higher_is_better(metric) else shades)
            axes.imshow(cells, cmap=colors, aspect="auto")
            finite = cells[np.isfinite(cells)]
            middle = (finite.min() + finite.max()) / 2 if len(finite) else 0.0
            mean, sd = contents.floor(metric)
            for (i, j), value in np.ndenumerate(cells):
                dark = value > middle if higher_is_better(metric) else value < middle
                color = "white" if dark and len(finite) and finite.max() > finite.min() else INK
                axes.text(j, i, fixed(value, decimals(sd, mean)), ha="center", va="center", color=color)
            axes.set_xticks(range(len(grid.columns)), [safe(name) for name in grid.columns])
            axes.set_yticks(range(len(grid.rows)), [safe(name) for name in grid.rows])
            axes.set_xlabel(safe(grid.across), color=MUTED)
            axes.set_ylabel(safe(grid.down), color=MUTED)
            _title(axes, f"{safe(metric)}, noise floor {fixed(sd, decimals(sd, mean))}")
            axes.tick_params(colors=INK, length=0)
            axes.spines[:].set_visible(False)
    return True


def _pareto(contents: Contents, png: Path) -> bool:
    """Draw the first figure against FLOPs, parameters and seconds, with the front of the arms that no other beats."""
    metric = contents.study.metrics[0]
    runs = {row.arm: row.runs for row in contents.of(metric) if row.baseline in ("", contents.study.baseline)}
    shown = {spent.arm: spent.amounts for spent in contents.budgets if math.isfinite(runs[spent.arm].mean)}
    if len(shown) < 2:
        return False
    colors = {arm.name: COLORS[k % len(COLORS)] for k, arm in enumerate(contents.study.arms)}
    mean, sd = contents.floor(metric)
    with canvas(png, 13, 5) as figure:
        for axes, cost in zip(figure.subplots(1, 3, sharey=True), ("flops", "params", "seconds")):
            x, y = [one[cost] for one in shown.values()], [runs[name].mean for name in shown]
            best = front(x, y, higher_is_better(metric))
            if math.isfinite(sd):
                axes.axhspan(mean - sd, mean + sd, color=NOISE, alpha=0.18, linewidth=0)
            axes.plot([x[i] for i in best], [y[i] for i in best], color=MUTED, linewidth=1.2, drawstyle="steps-post", zorder=1)
            for name, a, b in zip(shown, x, y):
                error = runs[name].sd if math.isfinite(runs[name].sd) else 0.0
                axes.errorbar([a], [b], [error], color=colors[name], marker="o", markersize=7, label=safe(name))
            axes.xaxis.set_major_formatter(lambda value, _: amount(value))
            axes.xaxis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]  # of a MaxNLocator
            axes.set_xlabel(TITLES[cost], color=MUTED)
            plain(axes)
        _title(figure.axes[0], f"{safe(metric)}, mean ± sd; line: Pareto front; band: noise floor")
        _legend(figure)
    return True


def _scaling(contents: Contents, png: Path) -> bool:
    """Draw the law's predictions against the measured losses, or the parabola of each isoFLOP budget."""
    scaling = contents.scaling
    if scaling is None or not len(scaling.losses) or scaling.refused:
        return False
    with canvas(png, 9, 6) as figure:
        axes = figure.subplots()
        unit = "FLOPs" if scaling.law is None else "parameters"
        _, sd = contents.floor(scaling.metric)
        for k, group in enumerate(scaling.groups()):
            color = COLORS[k % len(COLORS)]
            axes.plot(group.x, group.y, "o", color=color, markersize=5, label=f"{amount(group.size)} {unit}")
            axes.plot(group.line_x, group.line_y, color=color, linewidth=1.3)
            if math.isfinite(sd):
                label = "noise floor, ± sd" if k == 0 else None
                axes.errorbar(group.x, group.y, sd, fmt="none", color=NOISE, capsize=4, zorder=1, label=label)
        for k, one in enumerate(scaling.budgets):
            axes.plot([one.optimum], [one.loss], "*", color=COLORS[k % len(COLORS)], markersize=13)
        axes.set_xscale("log")
        axes.set_xlabel("tokens" if scaling.law else "parameters", color=MUTED)
        axes.set_ylabel(safe(scaling.metric), color=MUTED)
        _title(
            axes, "scaling law: points measured, lines fitted" if scaling.law else "isoFLOP parabolas, a star at each optimum"
        )
        plain(axes)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return True


DRAWERS: dict[str, Callable[[Contents, Path], bool]] = {
    "differences.png": _differences,
    "curves.png": _curves,
    "grid.png": _heat,
    "pareto.png": _pareto,
    "scaling.png": _scaling,
}
