"""Held-out loss of an objective, with perplexity and bits per byte for running text."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from lm.config import Config
from lm.data.corpus.corpus import Corpus
from lm.data.rows.pipeline import Evaluation, prefetch
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.sharding import local_rows, place
from lm.training import metrics


class HeldOut:
    """The objective's loss on the validation split, compiled once and called with parameters."""

    def __init__(self, config: Config, corpus: Corpus, mesh: jax.sharding.Mesh):
        self.objective = objective = config.objective.measured()
        self.origin = config, corpus
        # The rows of a micro-batch, which is what fits into memory in training.
        self.mesh, self.tokens, self.rows = mesh, corpus.validation, config.batch // config.micro_batches
        self.batches: Any = Evaluation(
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

    def each(self, params: Any) -> Iterator[metrics.Sums]:
        """Yield the sums of each batch."""
        memory = self.objective.initial_memory(self.rows)
        for batch in prefetch(self.batches, 0, self.count):
            # A row of one batch continues in the same row of the next, so the memory passes on as in training.
            sums, memory = self.sums(params, place(batch, self.mesh, self.rows), memory)
            yield sums

    def figures(self, total: metrics.Host, prefix: str) -> dict[str, float]:
        """Convert sums to named means."""
        values = metrics.total(metrics.means(total, prefix), self.objective.scales, prefix)
        # Targets per byte: nothing precedes the first token of the stream, so it is none.
        rate = (len(self.tokens) - 1) / max(self.tokens.raw_bytes, 1)
        return metrics.language(values, self.objective.nats, prefix, rate)

    def show(self, params: Any, tokenizer: Tokenizer, rows: int = 2) -> list[str]:
        """Format the first rows of held-out text with the objective's predictions."""
        batch = self.batches[0]
        predicted = jax.device_get(self.predict(params, place(batch, self.mesh, self.rows)))
        examples = [{name: x[i] for name, x in batch.items()} for i in range(min(rows, self.rows))]
        guesses = [predicted and {name: x[i] for name, x in predicted.items()} for i in range(len(examples))]
        return [self.objective.show(tokenizer, *pair) for pair in zip(examples, guesses)]

    @functools.cached_property
    def own(self) -> "HeldOut":
        """The evaluator of all rows on this process's devices: itself, unless several processes share the mesh."""
        from lm.training.own import own_mesh

        mesh = own_mesh(self.mesh, self.rows)
        return self if mesh is self.mesh else held_out_of(*self.origin, mesh)

    def alone(self, params: Any) -> list[tuple[str, "HeldOut", Any]]:
        """Return (metric prefix, evaluator, params) of every part that is measured by itself."""
        return [("", self, params)]


class HeldOutTasks(HeldOut):
    """Held-out examples of tasks that share a network (`Objective.apart`), an evaluator each."""

    def __init__(self, config: Config, corpus: Corpus, mesh: jax.sharding.Mesh):
        self.objective, self.mesh, self.tokens = config.objective.measured(), mesh, corpus.validation
        self.origin, self.rows = (config, corpus), config.batch // config.micro_batches
        self.parts = []
        for k, part in enumerate(self.objective.parts):
            own = dataclasses.replace(corpus, validation=corpus.validation.of(k))
            held_out = HeldOut(dataclasses.replace(config, objective=part.objective), own, mesh)
            self.parts.append((part, held_out))
        self.batches = range(sum(len(held_out.batches) for _, held_out in self.parts))
        self.count = sum(held_out.count for _, held_out in self.parts)

    def each(self, params: Any) -> Iterator[metrics.Sums]:
        for part, held_out in self.parts:
            yield from map(part.named, held_out.each(part.params(params)))

    def show(self, params: Any, tokenizer: Tokenizer, rows: int = 2) -> list[str]:
        shown = [(part, held_out.show(part.params(params), tokenizer, rows)) for part, held_out in self.parts]
        return [f"[{part.name}]\n{text}" for part, texts in shown for text in texts]

    def alone(self, params: Any) -> list[tuple[str, HeldOut, Any]]:
        return [(f"{part.name}/", held_out, part.params(params)) for part, held_out in self.parts]


def held_out_of(config: Config, corpus: Corpus, mesh: jax.sharding.Mesh) -> HeldOut:
    """Open the evaluator of a run's held-out split."""
    return (HeldOutTasks if config.objective.measured().apart else HeldOut)(config, corpus, mesh)
