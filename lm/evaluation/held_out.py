"""The held-out loss of an objective, as perplexity and bits per byte where it is nats of running text."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lm.config import Config
from lm.data.corpus.corpus import Corpus
from lm.data.corpus.prepare import prepare
from lm.data.rows.pipeline import Evaluation, prefetch
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check
from lm.evaluation.downstream import examined
from lm.evaluation.metrics.statistics import Figure, Figures, jackknife
from lm.evaluation.subject import Subject
from lm.objectives.base import resolve
from lm.sharding import AXES, local_rows, make_mesh, place
from lm.training import metrics
from lm.training.checkpoint import Checkpoints


class HeldOut:
    """The objective's loss on the validation split; build it once, call it with parameters."""

    def __init__(self, config: Config, corpus: Corpus, mesh: jax.sharding.Mesh):
        self.objective = objective = config.objective.measured()
        self.mesh, self.tokens, self.rows = mesh, corpus.validation, config.batch // config.micro_batches
        self.batches = Evaluation(
            self.tokens,
            objective.records,
            objective.corrupt,
            self.rows,
            packing=config.data.packing,
            seed=config.seed,
            shard=local_rows(mesh, self.rows),
        )
        self.count = min(len(self.batches), config.evaluate_batches or len(self.batches))
        self.sums = jax.jit(lambda params, batch, memory: objective.loss(params, batch, memory, None))
        self.predict = jax.jit(objective.predict)

    def __call__(self, params: Any) -> dict[str, float]:
        """Return `eval/validation/...`: mean loss, the objective's own metrics, perplexity and bits per byte of text."""
        total: metrics.Host = {}
        for sums in self.each(params):
            total = metrics.add(total, sums)
        return self.figures(total, "eval/validation")

    def each(self, params: Any) -> Iterator[metrics.Host]:
        """Give the sums of each batch."""
        memory = self.objective.initial_memory(self.rows)
        for batch in prefetch(self.batches, 0, self.count):
            sums, memory = self.sums(params, place(batch, self.mesh, self.rows), memory)
            yield sums

    def figures(self, total: metrics.Host, prefix: str) -> dict[str, float]:
        """Turn sums into named means."""
        values = metrics.total(metrics.means(total, prefix), self.objective.scales, prefix)
        rate = (len(self.tokens) - 1) / max(self.tokens.raw_bytes, 1)
        return metrics.language(values, self.objective.nats, prefix, rate)

    def show(self, params: Any, tokenizer: Tokenizer, rows: int = 2) -> list[str]:
        """Write the first rows of held-out text as the objective shows them, with its guesses."""
        batch = self.batches[0]
        found = jax.device_get(self.predict(params, place(batch, self.mesh, self.rows)))
        examples = [{name: x[i] for name, x in batch.items()} for i in range(min(rows, self.rows))]
        guesses = [found and {name: x[i] for name, x in found.items()} for i in range(len(examples))]
        return [self.objective.show(tokenizer, *pair) for pair in zip(examples, guesses)]

    def alone(self, params: Any) -> list[tuple[str, "HeldOut", Any]]:
        """List what is measured by itself: the beginning of its figures' names, it, and its parameters."""
        return [("", self, params)]


class HeldOutTasks(HeldOut):
    """The held-out examples of tasks that share a network (`Objective.apart`), each as if it were alone."""

    def __init__(self, config: Config, corpus: Corpus, mesh: jax.sharding.Mesh):
        self.objective, self.mesh, self.tokens = config.objective.measured(), mesh, corpus.validation
        self.parts = []
        for k, part in enumerate(self.objective.parts):
            own = dataclasses.replace(corpus, validation=corpus.validation.of(k))
            held_out = HeldOut(dataclasses.replace(config, objective=part.objective), own, mesh)
            self.parts.append((part, held_out))
        self.batches = range(sum(len(one.batches) for _, one in self.parts))
        self.count = sum(one.count for _, one in self.parts)

    def each(self, params: Any) -> Iterator[metrics.Host]:
        for part, one in self.parts:
            yield from map(part.named, one.each(part.params(params)))

    def show(self, params: Any, tokenizer: Tokenizer, rows: int = 2) -> list[str]:
        found = [(part, one.show(part.params(params), tokenizer, rows)) for part, one in self.parts]
        return [f"[{part.name}]\n{text}" for part, texts in found for text in texts]

    def alone(self, params: Any) -> list[tuple[str, HeldOut, Any]]:
        return [(f"{part.name}/", one, part.params(params)) for part, one in self.parts]


def held_out_of(config: Config, corpus: Corpus, mesh: jax.sharding.Mesh) -> HeldOut:
    """Open the held-out split of a run, as its objective measures it."""
    return (HeldOutTasks if config.objective.measured().apart else HeldOut)(config, corpus, mesh)


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
