"""Draw the loss curve of a run: `python -m lm.plots --workdir=runs/NAME`."""

from pathlib import Path

from absl import flags

from lm.errors import check
from lm.flags import run

WORKDIR = flags.DEFINE_string("workdir", None, "run whose loss to draw, into loss.png beside its metrics")


def main(overrides: list[tuple[str, str]]) -> None:
    """Draw one run's loss.png."""
    check(bool(WORKDIR.value) and not overrides, "name the run's folder and nothing else: --workdir=runs/NAME")
    from lm.evaluation.report.loss_curve import loss_curve

    png = Path(WORKDIR.value) / "loss.png"
    loss_curve(png.with_name("metrics.jsonl"), png)
    print(png)


if __name__ == "__main__":
    run(main)
