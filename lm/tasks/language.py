"""Language-model quality: the held-out loss as perplexity and bits per byte, and the probability of each token of a text."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import metrics
from lm.config import Config
from lm.data.pipeline import Evaluation, prefetch
from lm.data.prepare import Corpus
from lm.data.tokenizers import Tokenizer
from lm.errors import check
from lm.models.model import Model
from lm.sharding import local_rows, place


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
        memory = self.objective.initial_memory(self.rows)
        for batch in prefetch(self.batches, 0, self.count):
            sums, memory = self.sums(params, place(batch, self.mesh, self.rows), memory)
            total = metrics.add(total, sums)
        prefix = "eval/validation"
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


def score(config: Config, params: Any, tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """Give a text's tokens with the natural log-probability of each given those before it.

    A document begins after the separator, so its first token has a probability too; without a separator the first
    one has None. Raises UserError when the text is longer than the context.
    """
    ids = tokenizer.encode(text)
    check(len(ids) > 0, f"--text={text!r} has no tokens")
    lead = [] if tokenizer.separator is None else [tokenizer.separator]
    row = np.array([*lead, *ids], np.int32)
    context = config.objective.model.context
    check(len(row) - 1 <= context, f"--text has {len(ids)} tokens, more than the context of {context}; split it")
    padded = np.zeros((1, context), np.int32)  # one compiled program for every length; later tokens are not seen
    padded[0, : len(row) - 1] = row[:-1]
    logprobs = jax.device_get(log_probabilities(config.objective.model, params, padded))[0]
    found = [float(logprobs[i, token]) for i, token in enumerate(row[1:])]
    total = sum(found)
    return {
        "text": text,
        "ids": ids.tolist(),
        "tokens": tokenizer.pieces(ids),
        "logprobs": found if lead else [None, *found],
        "sum": total,
        "perplexity": math.exp(-total / len(found)) if found else None,
    }


def log_probabilities(model: Any, params: Any, tokens_BT: np.ndarray) -> jax.Array:
    """Natural log-probabilities (B, T, V) of each next token."""
    @jax.jit
    def run(params, tokens_BT):
        h_BTD, _ = Model(model).apply({"params": params}, tokens_BT)
        return jax.nn.log_softmax(Model(model).apply({"params": params}, method="head").logits(h_BTD), -1)

    return run(params, jnp.asarray(tokens_BT))
