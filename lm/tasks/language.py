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
from lm.models.transformer import Model
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
