"""Time of a training step over one size of the network at a time: a table and a picture."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.config import Config, override
from lm.data.corpus.corpus import Corpus
from lm.evaluation.report.loss_curve import GRID, MUTED, TRAIN
from lm.timing import step

HEADER = ("size", "value", "parameters", "ms a step", "tokens a second", "of the matmul rate", "MiB of the program")
# Factors on each size; the tokenizer's ids must fit, so a vocabulary only grows.
AXES = {"width": (0.5, 1, 2), "depth": (0.5, 1, 2), "context": (0.5, 1, 2), "vocab": (1, 2, 4)}
Point = dict[str, str | float]


def points(config: Config, corpus: Corpus, repeats: int, rate: float) -> Iterator[Point]:
    """Measure steps of a resolved config with one of its sizes changed, in both stacks of an encoder-decoder.

    Rows of a longer context are fewer, so that all steps have about as many tokens. `rate`: FLOP/s of a large product.
    """
    model = config.objective.model
    sides = [field.name for field in dataclasses.fields(model) if hasattr(getattr(model, field.name), "depth")]
    first = getattr(model, sides[-1]) if sides else model
    for axis, factors in AXES.items():
        for factor in factors:
            value = max(1, int(getattr(first, axis) * factor))
            changes = [
                (f"objective.model.{side}.{axis}" if side else f"objective.model.{axis}", str(value)) for side in sides or [""]
            ]
            changes += [("batch", str(max(1, int(config.batch / factor))))] if axis == "context" else []
            timed = step(override(config, changes), corpus, repeats)
            share = timed["step_flops"] / timed["step_seconds"] / rate
            yield {"size": axis, "value": value, **timed, "share_of_matmul": share}


def cells(point: Point) -> tuple[str, ...]:
    """Format a line of the table."""
    numbers = f"{point['parameters']:,}", f"{1e3 * float(point['step_seconds']):,.1f}", f"{point['tokens_per_second']:,.0f}"
    return (
        str(point["size"]),
        str(point["value"]),
        *numbers,
        f"{point['share_of_matmul']:.2f}",
        f"{float(point['program_bytes']) / 2**20:,.0f}",
    )


def draw(found: Sequence[Point], title: str, rate: float, png: Path) -> None:
    """Draw the measured seconds of a step, and those of its FLOPs at the rate of one large product, over each size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=110, layout="constrained")
    figure.suptitle(title)
    for axes, axis in zip(figure.subplots(1, len(AXES), sharey=True), AXES, strict=True):
        part = [point for point in found if point["size"] == axis]
        values = [float(point["value"]) for point in part]
        axes.plot(values, [1e3 * float(point["step_seconds"]) for point in part], "o-", color=TRAIN, label="measured")
        bound = [1e3 * float(point["step_flops"]) / rate for point in part]
        axes.plot(values, bound, "--", color=MUTED, label="its FLOPs at the rate of one large product")
        axes.set(xscale="log", yscale="log", xlabel=axis, xticks=values)
        axes.set_xticklabels([f"{value:,.0f}" for value in values])
        axes.minorticks_off()
        axes.grid(color=GRID)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms a step")
    figure.axes[2].legend(frameon=False, fontsize=7, loc="upper left")  # where the lines are flat
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)
