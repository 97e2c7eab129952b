"""Learning curves: the figures of a task over the steps of a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from lm.evaluation.report.loss_curve import MUTED, OTHERS, TRAIN, loss_curve, plain
from lm.evaluation.report.pictures import canvas
from lm.training.writers import parse_metrics

NAMES = "eval/validation/examples/"


def curves(workdir: Path) -> None:
    """Draw a run's loss.png, and learning.png if it has labelled examples."""
    log = workdir / "metrics.jsonl"
    loss_curve(log, workdir / "loss.png")
    learning_curve(log, workdir / "learning.png")


def learning_curve(metrics_jsonl: Path, png: Path) -> bool:
    """Draw every `eval/validation/examples/...` against steps; return False without any.

    The axis spans 0 to 1, for shares, correlations and errors, unless a figure exceeds it.
    """
    lines = parse_metrics(metrics_jsonl)
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(NAMES))  # as logged: the headline first
    curves = {name.removeprefix(NAMES): points(lines, name) for name in names}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not curves:
        return False
    with canvas(png, 10, 6) as figure:
        axes = figure.subplots()
        ends = []
        for color, (name, curve) in zip((TRAIN, *OTHERS) * len(curves), curves.items()):
            axes.plot(*curve.T, color=color, linewidth=1.8, marker="o", markersize=4)
            ends.append((curve[-1, 1], name, color))
        values = np.concatenate([curve[:, 1] for curve in curves.values()])
        low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
        axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
        # Labels from the bottom up, each a line above the last, so that none overlap.
        level, gap = -math.inf, 0.045 * (high - low)
        for value, name, color in sorted(ends):
            level = max(value, level + gap)
            axes.annotate(
                f" {name} {value:.3f}", (1, level), xycoords=axes.get_yaxis_transform(), color=color, va="center", fontsize=11
            )
        first = next(iter(curves))
        axes.set_title(f"{first} {curves[first][-1, 1]:.3f} at step {curves[first][-1, 0]:,.0f}", loc="left", fontsize=14)
        axes.set_xlabel("steps", color=MUTED)
        axes.set_ylabel("held-out examples", color=MUTED)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # of a MaxNLocator
        plain(axes)
    return True


def points(lines: list[dict], name: str) -> np.ndarray:
    """Return (step, value) of a metric where it is finite, (points, 2)."""
    pairs = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    curve = np.array(pairs, float).reshape(-1, 2)
    return curve[np.isfinite(curve[:, 1])]
