"""Pictures of an evaluation: confusion matrix and reliability diagram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.calibration import expected_error
from lm.evaluation.metrics.qa import is_chinese
from lm.evaluation.metrics.statistics import divide
from lm.evaluation.report.loss_curve import GRID, INK, MUTED, OTHERS, TRAIN, plain

if TYPE_CHECKING:  # matplotlib takes a second to import; only drawing needs it
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Fonts with Chinese characters; matplotlib's default font has none.
CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "SimHei")


@contextmanager
def canvas(png: Path, width: float, height: float, chinese: bool = False) -> Iterator[Figure]:
    """Open a figure of that size in inches, saved as PNG on leaving; `chinese` adds an installed Chinese font."""
    # Not pyplot: see `loss_curve`.
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

    known = {font.name for font in font_manager.fontManager.ttflist} if chinese else set()
    fonts = ["DejaVu Sans", *(name for name in CHINESE if name in known)]
    with rc_context({"font.family": fonts}):
        figure = Figure(figsize=(width, height), dpi=100, layout="compressed")
        yield figure
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, bbox_inches="tight", pad_inches=0.25)


def draw_confusion(counts_KK: np.ndarray, classes: Sequence[object], png: Path) -> None:
    """Draw a confusion matrix: counts by true class (rows) and predicted class (columns), shaded by the share of the row.

    Shades scale with the square root of the share, so that rare confusions are visible. Cells have numbers up to 20
    classes; beyond that names are thinned out, too.
    """
    counts_KK = np.asarray(counts_KK)
    size, names = len(counts_KK), [shortened(name) for name in classes]
    check(counts_KK.shape == (len(names),) * 2, f"counts {counts_KK.shape} do not fit {len(names)} classes")
    check(size > 0, "a confusion matrix of no classes cannot be drawn")
    # Cells of 0.62 inches up to 11 inches in all, and margins for the names.
    side = min(max(4.0, 0.62 * size), 11.0)
    longest = max(map(len, names))
    from matplotlib.colors import PowerNorm

    with canvas(png, side + 1.6 + 0.09 * longest, side + 1.0 + 0.07 * longest, any(map(is_chinese, "".join(names)))) as figure:
        axes = figure.subplots()
        shares_KK = divide(counts_KK, counts_KK.sum(1, keepdims=True))
        image = axes.imshow(shares_KK, cmap=_shades(), norm=PowerNorm(0.5, 0, 1))
        if size <= 20:
            _numbers(axes, counts_KK, shares_KK)
        _names(axes, names)
        _headline(axes, f"{int(np.trace(counts_KK)):,} of {int(counts_KK.sum()):,} right")
        # Ticks at shares that the square root spaces evenly enough to read.
        bar = figure.colorbar(image, ax=axes, aspect=30, pad=0.02, ticks=[0, 0.05, 0.25, 0.5, 1])
        bar.ax.set_yticklabels(["0 %", "5 %", "25 %", "50 %", "100 %"], color=MUTED, fontsize=9)
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)
        bar.set_label("share of the true class", color=MUTED, fontsize=9)


def shortened(name: object, longest: int = 24) -> str:
    """Truncate the name of a class."""
    text = str(name)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _shades() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", ["#ffffff", "#b9cce6", TRAIN, "#1d3a63"])


def _numbers(axes: Axes, counts_KK: np.ndarray, shares_KK: np.ndarray) -> None:
    """Write each count into its cell: white on dark shades, zeros faint."""
    size = len(counts_KK)
    digits = len(f"{counts_KK.max():,}")
    points = min(14.0, 0.75 * 72 * min(0.62, 11 / size) / (0.62 * max(digits, 2))) if size > 4 else 14
    for i, j in np.ndindex(counts_KK.shape):
        color = "white" if shares_KK[i, j] > 0.3 else INK if counts_KK[i, j] else "#c8c8c8"
        axes.text(j, i, f"{counts_KK[i, j]:,}", ha="center", va="center", color=color, fontsize=points)


def _names(axes: Axes, names: Sequence[str]) -> None:
    size = len(names)
    step = -(-size // 60)
    shown = range(0, size, step)
    points = 11 if size <= 12 else 9 if size <= 25 else 7
    turned = size > 6 or max(map(len, names)) * size > 40
    axes.set_xticks(list(shown), [names[k] for k in shown], rotation=90 if turned else 0, fontsize=points)
    axes.set_yticks(list(shown), [names[k] for k in shown], fontsize=points)
    axes.set_xlabel("predicted", color=MUTED)
    axes.set_ylabel("true", color=MUTED)
    axes.tick_params(colors=INK, length=0)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.8 if size <= 20 else 0.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _headline(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=14, color=INK, pad=12)


def draw_reliability(sums: np.ndarray, png: Path) -> None:
    """Draw a reliability diagram (Guo et al. 2017): accuracy by confidence, and the share of examples of each bin.

    `sums` (3 M) are counts, confidences and hits of M bins (`calibration.binned`). Empty bins are omitted; the gap to the
    diagonal is red where confidence is too high.
    """
    filled = np.split(sums, 3)[0] > 0
    check(bool(filled.any()), "a reliability diagram of no examples cannot be drawn")
    n, confidence, hits = (part[filled] for part in np.split(sums, 3))
    x, y, error = confidence / n, hits / n, float(expected_error(sums))
    with canvas(png, 6.5, 7.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        upper.text(0.02, 0.055, "calibrated", color=MUTED, fontsize=9, rotation=41, rotation_mode="anchor")
        for a, b in zip(x, y):
            upper.plot([a, a], [a, b], color=OTHERS[0] if a > b else OTHERS[1], linewidth=5, alpha=0.35, zorder=2)
        # The binomial error of a bin's accuracy: gaps within it are noise.
        spread = np.sqrt(y * (1 - y) / n)
        upper.errorbar(x, y, spread, color=TRAIN, linewidth=1.8, elinewidth=1, marker="o", markersize=5, zorder=3)
        upper.set_ylim(0, 1)
        upper.set_ylabel("accuracy", color=MUTED)
        _headline(upper, f"calibration error {error:.3f}, accuracy {(y * n).sum() / n.sum():.3f}")
        lower.bar(x, n / n.sum(), width=0.02, color=TRAIN, alpha=0.6)
        lower.set_ylabel("share of\nexamples", color=MUTED)
        lower.set_xlabel("confidence (bars in the plot: red too confident, green not enough)", color=MUTED)
        lower.set_xlim(0, 1)
        for axes in (upper, lower):
            plain(axes)
