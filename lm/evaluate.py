"""Measure a model on held-out text: every token of the split once, whatever the batch or the mesh."""

from typing import Any

import jax

from lm import metrics
from lm.config import Config
from lm.data.pipeline import Evaluation, prefetch
from lm.data.prepare import Corpus
from lm.sharding import local_rows, place


class HeldOut:
    """The objective's loss on the validation split; build it once, call it with parameters."""

    def __init__(self, config: Config, corpus: Corpus, mesh: jax.sharding.Mesh):
        objective = config.objective
        self.mesh, self.tokens, self.rows = mesh, corpus.validation, config.batch // config.micro_batches
        self.batches = Evaluation(
            self.tokens,
            objective.window,
            objective.stride,
            objective.corrupt,
            self.rows,
            packing=config.data.packing,
            seed=config.seed,
            shard=local_rows(mesh, self.rows),
        )
        self.count = min(len(self.batches), config.evaluate_batches or len(self.batches))
        self.sums = jax.jit(lambda params, batch: objective.loss(params, batch, None, None)[0])

    def __call__(self, params: Any) -> dict[str, float]:
        """Return `eval/validation/...`: mean loss, perplexity, bits per byte and the objective's own metrics."""
        total: metrics.Host = {}
        for batch in prefetch(self.batches, 0, self.count):
            total = metrics.add(total, self.sums(params, place(batch, self.mesh, self.rows)))
        rate = (len(self.tokens) - 1) / max(self.tokens.raw_bytes, 1)
        return metrics.language(total, "eval/validation", rate)
