"""The held-out loss of an objective, as perplexity and bits per byte where it is nats of running text."""

import dataclasses
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
