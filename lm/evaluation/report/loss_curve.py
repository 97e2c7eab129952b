"""The loss curve of a run as a picture, and the look of all pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm.errors import UserError
from lm.training.writers import parse_metrics

if TYPE_CHECKING:  # matplotlib takes a second to import; only drawing needs it
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#222222", "#767676", "#e6e6e6"
TRAIN, OTHERS = "#3b6fb6", ("#d1495b", "#2a9d6f", "#c9822b", "#7b559c", "#4c9aa8", "#8a6d3b")


def loss_curve(metrics_jsonl: Path, png: Path) -> None:
    """Draw training and evaluation losses (nats per token) against steps, with tokens on the upper axis.

    Draws `train/loss` and every `eval/.../loss`; values that are not finite are omitted and counted in the caption. Without
    losses the title is "no loss logged yet". Raises UserError without a log.
    """
    if not metrics_jsonl.exists():
        raise UserError(f"no {metrics_jsonl}: it appears with a run's first logged step")
    lines = parse_metrics(metrics_jsonl)
    train, evals = losses(lines)

    # Not pyplot, whose backend belongs to the caller: a notebook would show no picture of its own after a run.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    _draw(axes, train, evals)
    _frame(axes, lines, train, evals, metrics_jsonl.absolute().parent.name)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def losses(lines: list[dict]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Split a log into the training loss and the evaluation losses by name, each (points, 2) of (step, loss)."""
    logged = {name for line in lines for name in line if name.startswith("eval/") and name.endswith("/loss")}
    names = sorted(logged, key=lambda name: (name != "eval/validation/loss", name))

    def points(name: str) -> np.ndarray:
        pairs = [(line["step"], line[name]) for line in lines if name in line]
        return np.array([(step, math.nan if value is None else value) for step, value in pairs], float).reshape(-1, 2)

    return points("train/loss"), {name.removeprefix("eval/").removesuffix("/loss"): points(name) for name in names}


def smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Moving average over `half` neighbours on either side, fewer near the start, where losses fall fast; NaN stays a gap."""
    finite = np.isfinite(values)
    kept = np.clip(values, -1e6, 1e6)  # a burst beyond any axis would cost the running sum its digits
    total, weight = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(finite, kept, 0), finite))
    i = np.arange(len(values))
    reach = np.minimum(half, i // 4)
    low, high = i - reach, np.minimum(i + reach + 1, len(values))
    mean = (total[high] - total[low]) / np.maximum(weight[high] - weight[low], 1)
    return np.where(finite, mean, math.nan)


def best(points: np.ndarray) -> tuple[int, float] | None:
    """Return (step, loss) of the lowest finite loss."""
    known = points[np.isfinite(points[:, 1])]
    return (int(known[:, 0][known[:, 1].argmin()]), float(known[:, 1].min())) if len(known) else None


def _draw(axes: Axes, train: np.ndarray, evals: dict[str, np.ndarray]) -> None:
    ends = []
    if len(train):
        few = len(train) < 20  # too few to smooth: the points themselves
        smoothed = smooth(train[:, 1], 0 if few else max(len(train) // 40, 2))
        if not few:
            axes.plot(*train.T, color=TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(train[:, 0], smoothed, color=TRAIN, linewidth=1.8, marker="o" if few else None, markersize=4)
        ends.append(("train", train[:, 0], smoothed, TRAIN))
    for i, (name, points) in enumerate(evals.items()):
        color = OTHERS[i % len(OTHERS)]
        axes.plot(*points.T, color=color, linewidth=1.8, marker="o", markersize=4)
        ends.append((name, *points.T, color))
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: list[tuple]) -> None:
    """Label each line's end with its name and last value, without overlap."""
    known = [(name, x[np.isfinite(y)], y[np.isfinite(y)], color) for name, x, y, color in ends]
    known = sorted((end for end in known if len(end[1])), key=lambda end: end[2][-1])
    _limits(axes, known)
    bottom, top = axes.get_ylim()
    right, gap, level = axes.get_xlim()[1], (top - bottom) * 0.042, -math.inf
    for name, _, y, color in known:
        level = max(min(y[-1], top), level + gap)
        axes.text(right, level, f" {name} {y[-1]:.3f}", color=color, va="center", fontsize=11)


def _limits(axes: Axes, known: list[tuple]) -> None:
    """Fit the axes to the data, except for a burst far above the start, which would flatten the rest."""
    if not known:
        axes.set(xticks=[], yticks=[])
        return
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # of a MaxNLocator
    every = np.concatenate([y for _, _, y, _ in known])
    first = max(y[0] for _, _, y, _ in known)
    low, high, usual = every.min(), every.max(), max(first, np.percentile(every, 75))
    if high - low > 2 * (usual - low):
        high = usual
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    last = max(x[-1] for _, x, _, _ in known)
    axes.set_xlim(0, 1.01 * max(last, 1))  # room for the last marker


def _frame(axes: Axes, lines: list[dict], train: np.ndarray, evals: dict[str, np.ndarray], run: str) -> None:
    axes.set_title(f"{run}: {_headline(train, evals)}", loc="left", fontsize=14, color=INK, pad=12)
    axes.set_xlabel("step", color=MUTED)
    axes.set_ylabel("loss, nats per token", color=MUTED)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    plain(axes)
    _token_axis(axes, lines)
    gone = sum(int((~np.isfinite(points[:, 1])).sum()) for points in (train, *evals.values()))
    if gone:
        axes.text(1, 0.98, f"{gone} values not finite", transform=axes.transAxes, color=OTHERS[0], ha="right", va="top")


def plain(axes: Axes) -> None:
    """Draw a faint grid behind the data, and no frame."""
    axes.tick_params(colors=MUTED, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _headline(train: np.ndarray, evals: dict[str, np.ndarray]) -> str:
    for name, points in [*evals.items(), ("training", train)]:
        if lowest := best(points):
            return f"lowest {name} loss {lowest[1]:.3f} at step {lowest[0]:,}"
    return "no loss logged yet"


def _token_axis(axes: Axes, lines: list[dict]) -> None:
    """Add an upper axis of tokens if the log counts them."""
    rates = [line["train/tokens"] / line["step"] for line in lines if line.get("train/tokens") and line["step"]]
    if not rates:
        return
    rate = rates[-1]
    upper = axes.secondary_xaxis("top", functions=(lambda steps: steps * rate, lambda tokens: tokens / rate))
    upper.xaxis.set_major_formatter(lambda tokens, _: count(tokens))
    upper.set_xlabel("tokens", color=MUTED, fontsize=9)
    upper.tick_params(colors=MUTED, length=0, labelsize=9)
    upper.spines[:].set_visible(False)


def count(value: float) -> str:
    """Abbreviate a count: 950, 1.5M, 300B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
