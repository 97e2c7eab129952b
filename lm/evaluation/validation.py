"""The task `validation`: the held-out split of a finished run, measured with errors."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import Config
from lm.data.corpus.prepare import prepare
from lm.errors import check
from lm.evaluation.downstream import examined
from lm.evaluation.held_out import HeldOut, held_out_of
from lm.evaluation.metrics.statistics import Figure, Figures, jackknife
from lm.evaluation.subject import Subject
from lm.objectives.base import resolve
from lm.saved import mesh_of
from lm.training import metrics
from lm.training.checkpoint import Checkpoints


def reopened(config: Config, params: Any, workdir: Path | None = None) -> HeldOut:
    """Reopen the whole held-out split of a run on the mesh of its parameters.

    Raises UserError where the text, or the text of the vocabulary, differs from that of the run in `workdir`.
    """
    config, corpus = resolve(config, prepare(config.data, report=print))
    if workdir:
        # Notes on the data are the same in all checkpoints of a run: those of any whole one do.
        checkpoints = Checkpoints(workdir, config.keep, read_only=True)
        _, notes = checkpoints.first_whole(checkpoints.results(), checkpoints.notes, lambda line: None)
        corpus.check_identity(notes, workdir, "name other --tasks")
    check(corpus.holds_out, "this run has no held-out text: its config has validation=0")
    mesh = mesh_of(params)
    with jax.set_mesh(mesh):
        # The whole split, whatever part of it evaluations in training were limited to.
        return held_out_of(dataclasses.replace(config, evaluate_batches=0), corpus, mesh)


@dataclass(frozen=True)
class Validation:
    """The run's own held-out split, by its objective; of labelled examples also their figures, `examples/NAME`.

    Errors of the objective's sums by the jackknife over batches; for `examples/`: `lm.evaluation.predictions`.
    """

    def measure(self, subject: Subject) -> Figures:
        held_out = reopened(subject.config, subject.params, subject.workdir)
        with jax.set_mesh(held_out.mesh):
            report = subject.progress("validation", held_out.count)
            figures: dict[str, Any] = {}
            for prefix, part, params in held_out.alone(subject.params):
                sums = []
                for batch in part.each(params):
                    sums.append(jax.device_get(batch))
                    report(1)
                own = jackknifed(part, sums, subject.seed)
                figures |= {prefix + name.strip("/"): figure for name, figure in own.items()}
            if "loss" not in figures:  # of tasks that are measured apart: their batches are independent
                scaled = [(scale, figures[name]) for name, scale in held_out.objective.scales.items()]
                error = math.hypot(*(scale * figure.error for scale, figure in scaled))
                figures = {"loss": Figure.of(sum(scale * figure.value for scale, figure in scaled), error), **figures}
            return figures | examined(held_out, subject.params, subject.seed)


def jackknifed(held_out: HeldOut, sums: list[metrics.Host], seed: int) -> Figures:
    """Compute figures from the sums of batches; errors by the jackknife over batches."""

    def statistic(chosen: np.ndarray) -> dict[str, float]:
        total: metrics.Host = {}
        for i in chosen:
            total = metrics.add(total, sums[i])
        return held_out.figures(total, "")

    return jackknife(statistic, len(sums), seed)
