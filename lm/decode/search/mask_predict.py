"""Mask-Predict: a whole target at once, then its least certain tokens again (Ghazvininejad et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.decode.prefill import check_finite
from lm.decode.search.masked import WIDTH, padded
from lm.errors import check
from lm.models.encoder_decoder import Seq2Seq
from lm.models.heads import Head
from lm.objectives.conditional import Conditional

ROWS = 32  # sources that go through the model together


@dataclass(frozen=True)
class Predicted:
    """A target: its new ids, the end token among them, without the prefix.

    `logprob`: the sum over the new tokens of the natural log-probability that each had when it was last predicted, in
    parallel with the others masked then; `score`: that sum divided by the target's length, which ranks the lengths.
    `length_logprob`: of the length, under the model.
    """

    ids: np.ndarray
    logprob: float
    score: float
    length_logprob: float


class Encoded(struct.PyTreeNode):
    """Encoded sources, as the decoder attends to them."""

    source_BSD: jax.Array
    segments_BS: jax.Array

    def select(self, rows_B: jax.Array) -> "Encoded":
        return jax.tree.map(lambda x: x[rows_B], self)


def mask_predict(
    objective: Conditional, params: Any, sources: Sequence[np.ndarray], *, iterations: int = 10, lengths: int = 5,
    prefixes: Sequence[np.ndarray] | None = None, longest: int = 0,
) -> list[list[Predicted]]:  # fmt: skip
    """Predict the target of each source (its ids, without end token), for its `lengths` likeliest lengths, best first.

    `objective`: one that predicts lengths and masked tokens of targets (`lm.objectives.conditional`).
    T `iterations`: the first predicts all tokens of a target of N masks; before iteration t = 1 ... T - 1 the
    max(1, floor(N (1 - t/T))) least probable ones are masked again and predicted given the rest. All others keep their
    token and its probability. Lengths compete by the sum of log p over N. A prefix is never masked: N then counts the
    tokens behind it in the schedule, and only lengths beyond it are tried.
    `longest`: longest target, its end token and prefix included; 0: the decoder's context.
    """
    check("mask_predict" in objective.fills, f"{type(objective).__name__} predicts no lengths: take a run of Conditional")
    # Two places of the encoder are the slot of the length and the end token.
    capacity, context = objective.limits[0] - 2, objective.limits[1]
    longest = min(longest or context, context)
    check(iterations >= 1 and lengths >= 1, f"iterations={iterations} and lengths={lengths} must be at least 1")
    check(lengths <= longest, f"lengths={lengths}: there are no more than {longest} lengths to try")
    prefixes = [np.zeros(0, np.int32)] * len(sources) if prefixes is None else prefixes
    check(len(prefixes) == len(sources), f"{len(prefixes)} prefixes for {len(sources)} sources: give one each, perhaps empty")
    for source, prefix in zip(sources, prefixes, strict=True):
        size, most = len(source), longest - lengths
        check(size <= capacity, f"a source of {size} tokens passes the encoder's capacity of {capacity}: shorten it")
        check(len(prefix) <= most, f"a prefix of {len(prefix)} tokens leaves no {lengths} lengths: at most {most} tokens")
    results = []
    for low in range(0, len(sources), ROWS):
        part = slice(low, low + ROWS)
        results += predict(objective, params, sources[part], prefixes[part], iterations, lengths, longest)
    return results


def predict(
    objective: Conditional, params: Any, sources: Sequence[np.ndarray], prefixes: Sequence[np.ndarray], iterations: int,
    lengths: int, longest: int,
) -> list[list[Predicted]]:  # fmt: skip
    """Predict the targets of one batch of sources."""
    # As in training: a slot whose state predicts the length, the tokens, the end token.
    source_BS, source_segments_BS = padded([np.array([0, *ids, objective.end]) for ids in sources])
    encoded, logits_BL = encode(objective, params, source_BS, source_segments_BS)

    # The likeliest lengths that hold the prefix and one more token.
    size_BL = np.arange(1, logits_BL.shape[1] + 1)[None]
    least_B = np.array([len(prefix) for prefix in prefixes])[:, None] + 1
    logits_BL = np.asarray(logits_BL)
    scores_BL = np.where((size_BL >= least_B) & (size_BL <= longest), logits_BL, -np.inf)
    best_BC = np.argsort(-scores_BL, 1, kind="stable")[:, :lengths] + 1
    length_logprobs_BL = np.asarray(jax.nn.log_softmax(logits_BL))

    # A row for each length.
    tokens_RT, segments_RT, free_RT = lay_targets(prefixes, best_BC, objective.mask, objective.model.context)
    rows_R = np.repeat(np.arange(len(sources)), lengths)
    encoded = encoded.select(rows_R)
    tokens_RT, logprobs_RT = refine(objective, params, encoded, tokens_RT, segments_RT, free_RT, iterations=iterations)
    tokens_RT, logprobs_RT = np.asarray(tokens_RT), np.asarray(logprobs_RT, np.float64)
    check_finite(logits_BL, "the length of a target")
    check_finite(logprobs_RT, "the tokens of a target")
    by_source: list[list[Predicted]] = [[] for _ in sources]
    for row, i in enumerate(rows_R.tolist()):
        size, total = int(best_BC.flat[row]), float(logprobs_RT[row].sum())
        length_logprob = float(length_logprobs_BL[i, size - 1])
        by_source[i].append(Predicted(tokens_RT[row, len(prefixes[i]) : size], total, total / size, length_logprob))
    return [sorted(candidates, key=lambda target: -target.score) for candidates in by_source]


def lay_targets(
    prefixes: Sequence[np.ndarray], sizes_BC: np.ndarray, mask: int, context: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make targets of masks behind the prefixes, a row for each length: tokens, segments and prediction mask, (R, T)."""
    count = sizes_BC.shape[1]
    width = min(context, -(-sizes_BC.max() // WIDTH) * WIDTH)
    size_R1 = sizes_BC.reshape(-1, 1)
    segments_RT = (np.arange(width) < size_R1).astype(np.int32)
    tokens_RT = np.where(segments_RT > 0, np.int32(mask), 0)
    free_RT = segments_RT > 0
    for row in range(len(size_R1)):
        prefix = prefixes[row // count]
        tokens_RT[row, : len(prefix)], free_RT[row, : len(prefix)] = prefix, False
    return tokens_RT, segments_RT, free_RT


def parts(objective: Conditional, params: Any) -> tuple[Seq2Seq, dict[str, Any], jax.Array]:
    """Return the network, its variables and the table (L + 1, D) of the slot and the lengths."""
    variables = {"params": {k: v for k, v in params.items() if k != "lengths"}}
    return Seq2Seq(objective.model), variables, params["lengths"]["table"]


@partial(jax.jit, static_argnames="objective")
def encode(objective: Conditional, params: Any, source_BS: jax.Array, segments_BS: jax.Array) -> tuple[Encoded, jax.Array]:
    """Encode the sources, whose first entry is the slot; return them and logits (B, L) of the lengths 1, 2, ..."""
    pair, variables, table_LD = parts(objective, params)
    x_BSD = pair.apply(variables, source_BS, method="vectors")
    x_BSD = x_BSD.at[:, 0].set(table_LD[0].astype(x_BSD.dtype))
    positions_BS = jnp.broadcast_to(jnp.maximum(jnp.arange(source_BS.shape[1]) - 1, 0), source_BS.shape)
    h_BSD = pair.apply(variables, x_BSD, positions_BS, segments_BS, method="encode_states")
    head = Head(table_VD=table_LD[1:], vocab=objective.model.context)
    return Encoded(h_BSD, segments_BS.at[:, 0].set(0)), head.logits(h_BSD[:, 0])


@partial(jax.jit, static_argnames=("objective", "iterations"))
def refine(
    objective: Conditional, params: Any, encoded: Encoded, tokens_BT: jax.Array, segments_BT: jax.Array, free_BT: jax.Array, *,
    iterations: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Run the iterations; return the tokens (B, T) and the log-probability (0 in prefixes) of each when last predicted."""
    pair, variables, _ = parts(objective, params)
    head = pair.apply(variables, method="head")
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    source = {"source_BSD": encoded.source_BSD, "source_segments_BS": encoded.segments_BS}
    free_B1 = free_BT.sum(1, keepdims=True)

    # Predict the masked tokens in parallel; the others keep their token and log-probability.
    def guess(tokens_BT: jax.Array, logprobs_BT: jax.Array, masked_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        read_BT = jnp.where(masked_BT, objective.mask, tokens_BT)
        h_BTD = pair.apply(variables, read_BT, positions_BT, segments_BT, causal=False, method="decode", **source)
        logits_BTV = head.logits(h_BTD)
        best_BT = logits_BTV.max(-1)
        new_BT = best_BT - jax.nn.logsumexp(logits_BTV, -1)
        ids_BT = jnp.argmax(logits_BTV, -1).astype(tokens_BT.dtype)
        return jnp.where(masked_BT, ids_BT, tokens_BT), jnp.where(masked_BT, new_BT, logprobs_BT)

    def again(t: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        tokens_BT, logprobs_BT = carry
        # Whole numbers: floor(N (1 - t/T)) in floats would lose one where the division is inexact.
        count_B1 = jnp.maximum(1, free_B1 * (iterations - t) // iterations)
        # The inverse of the sorting permutation ranks tokens by confidence, those of the prefix last.
        order_BT = jnp.argsort(jnp.where(free_BT, logprobs_BT, jnp.inf), 1, stable=True)
        rank_BT = jnp.argsort(order_BT, 1)
        return guess(tokens_BT, logprobs_BT, free_BT & (rank_BT < count_B1))

    first = guess(tokens_BT, jnp.zeros(tokens_BT.shape, jnp.float32), free_BT)
    return jax.lax.fori_loop(1, iterations, again, first)
