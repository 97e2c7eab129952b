"""The task `validation`: the held-out split of a finished run, opened once more and measured with errors."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import jax

from lm.config import Config
from lm.data.corpus.prepare import prepare
from lm.errors import check
from lm.evaluation.downstream import examined
from lm.evaluation.held_out import HeldOut, held_out_of
from lm.evaluation.metrics.statistics import Figure, Figures, jackknife
from lm.evaluation.subject import Subject
from lm.objectives.base import resolve
from lm.sharding import AXES, make_mesh
from lm.training import metrics
from lm.training.checkpoint import Checkpoints


def reopened(config: Config, workdir: Path | None = None) -> HeldOut:
    """Open the whole held-out split of a run once more, on this machine's first device.

    Raises UserError where it is no longer that of the run in `workdir`: other text, or a vocabulary made of other text.
    """
    config, corpus = resolve(config, prepare(config.data, report=print))
    if workdir:
        checkpoints = Checkpoints(workdir, config.keep, read_only=True)
        _, notes = checkpoints.first_whole(checkpoints.results(), checkpoints.notes, lambda line: None)
        corpus.check_identity(notes, workdir, "name what to measure with --tasks")
    check(corpus.holds_out, "this run held no text out: its config has validation=0")
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        return held_out_of(dataclasses.replace(config, evaluate_batches=0), corpus, mesh)


@dataclass(frozen=True)
class Validation:
    """The run's own held-out split, whole, by its objective; errors by leaving batches out in turn.

    Of labelled examples also what is usual to measure of their answers, `examples/NAME` (`lm.evaluation.predictions`).
    """

    def measure(self, subject: Subject) -> Figures:
        held_out = reopened(subject.config, subject.workdir)
        with jax.set_mesh(held_out.mesh):
            report, found = subject.progress("validation", held_out.count), {}
            for prefix, one, params in held_out.alone(subject.params):
                sums = []
                for batch in one.each(params):
                    sums.append(jax.device_get(batch))
                    report(1)
                figures = left_out(one, sums, subject.seed)
                found |= {prefix + name.strip("/"): figure for name, figure in figures.items()}
            if "loss" not in found:
                scaled = [(scale, found[name]) for name, scale in held_out.objective.scales.items()]
                error = math.hypot(*(scale * figure.error for scale, figure in scaled))
                found = {"loss": Figure.of(sum(scale * figure.value for scale, figure in scaled), error), **found}
            return found | examined(held_out, subject.params, subject.seed)


def left_out(held_out: HeldOut, sums: list[metrics.Host], seed: int) -> Figures:
    """Turn the sums of batches into figures; errors by leaving batches out in turn."""

    def statistic(chosen):
        total: metrics.Host = {}
        for i in chosen:
            total = metrics.add(total, sums[i])
        return held_out.figures(total, "")

    return jackknife(statistic, len(sums), seed)
