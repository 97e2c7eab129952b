"""Write the files of a finished fine-tuning run again: for another checkpoint or into another folder.

    python -m lm.evaluation.again --workdir=RUN [--step=best] [--output=DIR]
"""

from __future__ import annotations

from pathlib import Path

import jax

from lm import platform
from lm.convert.runs import opened
from lm.errors import check
from lm.evaluation.downstream import asked, leave
from lm.evaluation.report.learning_curve import learning_curve
from lm.evaluation.validation import reopened


def again(workdir: Path, step: str, output: Path) -> list[Path]:
    """Write the files of a finished run; raises UserError for a run without labelled examples."""
    config, params, _ = opened(str(workdir), None, step)
    held_out = reopened(config, workdir)
    with jax.set_mesh(held_out.mesh):
        predicted = asked(held_out, params)
    check(bool(predicted), f"'{workdir}' was trained on running text: python -m lm.evaluate --workdir={workdir}")
    paths = [path for task, found in predicted for path in leave(found, found.figures(), output, task)]
    log = workdir / "metrics.jsonl"
    return paths + ([output / "learning.png"] if log.exists() and learning_curve(log, output / "learning.png") else [])


if __name__ == "__main__":
    from absl import flags

    from lm.flags import run

    WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best, a step")
    OUTPUT = flags.DEFINE_string("output", None, "folder for the files (default: the run's)")

    def main(overrides: list[tuple[str, str]]) -> None:
        """Write the files and print their names."""

        check(not overrides, "lm.evaluation.again takes no --config.* flags: a run's config is its own")
        platform.prepare()
        for path in again(Path(WORKDIR.value), STEP.value, Path(OUTPUT.value or WORKDIR.value)):
            print(path)

    run(main)
