"""Pseudo-log-likelihood: log p of each token given all others, one mask at a time (Salazar et al. 2020)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.prefill import check_finite
from lm.decode.search.masked import framed, padded, place_logits
from lm.evaluation.subject import Subject
from lm.sharding import NO_MESH


def masked_logprobs(subject: Subject, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return log p of each token of each row with that token masked, [T]; special tokens around a row are not scored.

    Raises UserError for a model that fills no masks, or a row longer than its context.
    """
    objective, mask = subject.objective, subject.tokenizer.special_id("[MASK]")
    network, logprobs = objective.masked_network(), [np.zeros(len(ids), np.float32) for ids in rows]
    jobs = [(i, at) for i, ids in enumerate(rows) for at in range(len(ids))]
    framed_rows = [framed(subject.tokenizer, ids, objective) for ids in rows]
    # Sorted by length, so that rows of a batch need little padding; the longest first, so that one past the context fails
    # before any work.
    jobs.sort(key=lambda job: -len(framed_rows[job[0]]))
    report = subject.progress("masks", len(jobs))
    while jobs:
        width = padded([framed_rows[jobs[0][0]]])[0].shape[1]
        part, jobs = jobs[: max(1, subject.tokens // width)], jobs[max(1, subject.tokens // width) :]
        count = 1 << (len(part) - 1).bit_length()  # powers of two: few shapes to compile for
        filled = part + part[-1:] * (count - len(part))
        tokens_BT, segments_BT = padded([framed_rows[i] for i, _ in filled], width)
        # One further right, behind [CLS]; the targets are read before the mask stands in their places.
        positions_B = np.array([at + 1 for _, at in filled], np.int32)
        targets_B = tokens_BT[np.arange(count), positions_B].copy()
        tokens_BT[np.arange(count), positions_B] = mask
        with jax.sharding.use_abstract_mesh(NO_MESH):
            logprobs_B = np.asarray(logprobs_at(network, subject.params, tokens_BT, segments_BT, positions_B, targets_B))
        check_finite(logprobs_B, "a masked token")
        for (i, at), value in zip(part, logprobs_B):
            logprobs[i][at] = value
        report(len(part))
    return logprobs


@partial(jax.jit, static_argnames="network")
def logprobs_at(
    network: Any, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array, positions_B: jax.Array, targets_B: jax.Array
) -> jax.Array:
    """Return the log-probability (B,) of one target per row."""
    logits_BV = place_logits(network, params, tokens_BT, segments_BT, positions_B[:, None])[:, 0]
    return jnp.take_along_axis(jax.nn.log_softmax(logits_BV), targets_B[:, None], 1)[:, 0]
