"""Files of a finished fine-tuning run, written again."""

from __future__ import annotations

from pathlib import Path

import jax

from lm.convert.runs import opened
from lm.errors import check
from lm.evaluation.downstream import asked, leave
from lm.evaluation.report.facets import Run
from lm.evaluation.report.learning_curve import learning_curve
from lm.evaluation.validation import reopened


def again(workdir: Path, step: str, output: Path) -> list[Path]:
    """Write the files of a finished run; raises UserError for a run without labelled examples."""
    config, params, _ = opened(str(workdir), None, step)
    held_out = reopened(config, params, workdir)
    with jax.set_mesh(held_out.mesh):
        predicted = asked(held_out, params)
    check(bool(predicted), f"'{workdir}' was trained on running text: python -m lm.evaluate --workdir={workdir}")
    run = Run(str(workdir), step)
    paths = [path for task, found in predicted for path in leave(found, found.figures(), output, task, run)]
    log = workdir / "metrics.jsonl"
    return paths + ([output / "learning.png"] if log.exists() and learning_curve(log, output / "learning.png") else [])
