"""A whole target at once, then its least certain tokens again: Mask-Predict (Ghazvininejad et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.decode.prefill import check_finite
from lm.errors import check
from lm.models.encoder_decoder import Seq2Seq
from lm.models.heads import Head

ROWS = 32  # sources that go through the model together
WIDTH = 16  # sources and targets are padded to a multiple of this: few shapes to compile for


@dataclass(frozen=True)
class Predicted:
    """A target: its new ids, the end token among them, without the prefix.

    `logprob`: the sum over the new tokens of the natural log-probability that each had when it was last predicted, at
    once with the others that were masked then; `score`: what lengths are compared by, that sum divided by the target's
    length. `length_logprob`: of the length, under the model.
    """

    ids: np.ndarray
    logprob: float
    score: float
    length_logprob: float


class Encoded(struct.PyTreeNode):
    """What the decoder sees of the sources."""

    source_BSD: jax.Array
    segments_BS: jax.Array

    def select(self, rows_B: jax.Array) -> "Encoded":
        return jax.tree.map(lambda x: x[rows_B], self)


def mask_predict(
    objective: Any,
    params: Any,
    sources: Sequence[np.ndarray],
    *,
    iterations: int = 10,
    lengths: int = 5,
    prefixes: Sequence[np.ndarray] | None = None,
    longest: int = 0,
) -> list[list[Predicted]]:
    """Predict the target of each source (its ids, without end token), for its `lengths` likeliest lengths, best first.

    `objective`: one that predicts lengths and masked tokens of targets (`lm.objectives.conditional`).
    T `iterations`: the first predicts all tokens of a target of N masks; before iteration t = 1 ... T - 1 the
    max(1, floor(N (1 - t/T))) least probable ones are masked again and predicted given the rest. All others keep their
    token and the probability it had. Lengths compete by the sum of log p over N. A prefix is given and never masked:
    N then counts the tokens behind it in the schedule, and only lengths beyond it are tried.
    `longest`: longest target, its end token and prefix included; 0: the decoder's context.
    """
    check("mask_predict" in objective.fills, f"{type(objective).__name__} predicts no lengths: take a run of Conditional")
    room, context = objective.limits[0] - 2, objective.limits[1]
    longest = min(longest or context, context)
    check(iterations >= 1 and lengths >= 1, f"iterations={iterations} and lengths={lengths} must be at least 1")
    check(lengths <= longest, f"lengths={lengths}: there are no more than {longest} lengths to try")
    prefixes = [np.zeros(0, np.int32)] * len(sources) if prefixes is None else prefixes
    check(len(prefixes) == len(sources), f"{len(prefixes)} prefixes for {len(sources)} sources: give one each, perhaps empty")
    for source, prefix in zip(sources, prefixes, strict=True):
        check(len(source) <= room, f"a source of {len(source)} tokens passes the encoder's room of {room}: shorten it")
        most = longest - lengths
        check(len(prefix) <= most, f"a prefix of {len(prefix)} tokens leaves no {lengths} lengths: at most {most} tokens")
    found = []
    for low in range(0, len(sources), ROWS):
        part = slice(low, low + ROWS)
        found += predict(objective, params, sources[part], prefixes[part], iterations, lengths, longest)
    return found


def predict(objective, params, sources, prefixes, iterations: int, lengths: int, longest: int) -> list[list[Predicted]]:
    """Predict the targets of one batch of sources."""
    source_BS, source_segments_BS = lay_sources(sources, objective.end)
    encoded, logits_BL = encode(objective, params, source_BS, source_segments_BS)
    size_BL = np.arange(1, logits_BL.shape[1] + 1)[None]
    least_B = np.array([len(prefix) for prefix in prefixes])[:, None] + 1
    logits_BL = np.asarray(logits_BL)
    scores_BL = np.where((size_BL >= least_B) & (size_BL <= longest), logits_BL, -np.inf)
    best_BC = np.argsort(-scores_BL, 1, kind="stable")[:, :lengths] + 1
    length_logprobs_BL = np.asarray(jax.nn.log_softmax(logits_BL))
    tokens_RT, segments_RT, free_RT = lay_targets(prefixes, best_BC, objective.mask, objective.model.context)
    rows_R = np.repeat(np.arange(len(sources)), lengths)
    how = {"iterations": iterations}
    tokens_RT, logprobs_RT = refine(
        objective, params, encoded.select(rows_R), tokens_RT, segments_RT, free_RT, **how
    )
    tokens_RT, logprobs_RT = np.asarray(tokens_RT), np.asarray(logprobs_RT, np.float64)
    check_finite(logits_BL, "the length of a target")
    check_finite(logprobs_RT, "the tokens of a target")
    found = [[] for _ in sources]
    for row, i in enumerate(rows_R):
        size, total = best_BC.flat[row], float(logprobs_RT[row].sum())
        length_logprob = float(length_logprobs_BL[i, size - 1])
        found[i].append(Predicted(tokens_RT[row, len(prefixes[i]) : size], total, total / size, length_logprob))
    return [sorted(candidates, key=lambda one: -one.score) for candidates in found]


def lay_sources(sources: Sequence[np.ndarray], end: int) -> tuple[np.ndarray, np.ndarray]:
    """Put sources below each other, as in training: a slot, the tokens, the end token; tokens and segments, int32 (B, S)."""
    width = -(-(max(map(len, sources)) + 2) // WIDTH) * WIDTH
    tokens_BS, segments_BS = np.zeros((2, len(sources), width), np.int32)
    for i, ids in enumerate(sources):
        tokens_BS[i, 1 : len(ids) + 2] = [*ids, end]
        segments_BS[i, : len(ids) + 2] = 1
    return tokens_BS, segments_BS


def lay_targets(prefixes, sizes_BC: np.ndarray, mask: int, context: int):
    """Make targets of masks behind the prefixes, a row for each length: tokens, segments, and which are free, (R, T)."""
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


def parts(objective: Any, params: Any) -> tuple[Seq2Seq, dict[str, Any], jax.Array]:
    """Give the network, its variables and the table (L + 1, D) of the slot and the lengths."""
    variables = {"params": {k: v for k, v in params.items() if k != "lengths"}}
    return Seq2Seq(objective.model), variables, objective.table.apply({"params": params["lengths"]}, method="whole")


@partial(jax.jit, static_argnames="objective")
def encode(objective: Any, params, source_BS, segments_BS) -> tuple[Encoded, jax.Array]:
    """Read the sources, whose first entry is the slot; give the states and logits (B, L) of the lengths 1, 2, ..."""
    pair, variables, table_LD = parts(objective, params)
    x_BSD = pair.apply(variables, source_BS, method="vectors")
    x_BSD = x_BSD.at[:, 0].set(table_LD[0].astype(x_BSD.dtype))
    positions_BS = jnp.broadcast_to(jnp.maximum(jnp.arange(source_BS.shape[1]) - 1, 0), source_BS.shape)
    h_BSD = pair.apply(variables, x_BSD, positions_BS, segments_BS, method="encode_states")
    head = Head(table_VD=table_LD[1:], vocab=objective.model.context)
    return Encoded(h_BSD, segments_BS.at[:, 0].set(0)), head.logits(h_BSD[:, 0])


@partial(jax.jit, static_argnames=("objective", "iterations"))
def refine(objective: Any, params, encoded: Encoded, tokens_BT, segments_BT, free_BT, *, iterations: int):
    """Run the iterations; give the tokens (B, T), and each free one's log-probability when it was predicted (else 0)."""
    pair, variables, _ = parts(objective, params)
    head = pair.apply(variables, method="head")
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    source = {"source_BSD": encoded.source_BSD, "source_segments_BS": encoded.segments_BS}
    free_B1 = free_BT.sum(1, keepdims=True)

    def guess(tokens_BT, logprobs_BT, masked_BT):
        read_BT = jnp.where(masked_BT, objective.mask, tokens_BT)
        h_BTD = pair.apply(variables, read_BT, positions_BT, segments_BT, causal=False, method="decode", **source)
        logits_BTV = head.logits(h_BTD)
        best_BT = logits_BTV.max(-1)
        found_BT = best_BT - jax.nn.logsumexp(logits_BTV, -1)
        ids_BT = jnp.argmax(logits_BTV, -1).astype(tokens_BT.dtype)
        return jnp.where(masked_BT, ids_BT, tokens_BT), jnp.where(masked_BT, found_BT, logprobs_BT)

    def again(t, carry):
        tokens_BT, logprobs_BT = carry
        # Whole numbers: floor(N (1 - t/T)) in floats would lose one where the division is inexact.
        count_B1 = jnp.maximum(1, free_B1 * (iterations - t) // iterations)
        order_BT = jnp.argsort(jnp.where(free_BT, logprobs_BT, jnp.inf), 1, stable=True)
        rank_BT = jnp.argsort(order_BT, 1)
        return guess(tokens_BT, logprobs_BT, free_BT & (rank_BT < count_B1))

    first = guess(tokens_BT, jnp.zeros(tokens_BT.shape, jnp.float32), free_BT)
    return jax.lax.fori_loop(1, iterations, again, first)
