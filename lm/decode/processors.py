"""Logits processors: penalties and bans on scores (B, V) given the text so far, -inf where a token is banned.

Each is a pure function inside the compiled loop, whose cost grows with the text and not with text times vocabulary.
`Rules` applies those that are switched on, in the order of Hugging Face's generate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.errors import check

LOWEST = float(np.finfo(np.float32).min)  # the logit of ids beyond the vocabulary


class History(struct.PyTreeNode):
    """The tokens of each row so far: a left-padded prompt of `prompt` columns, `count` new tokens, unused capacity.

    In an encoder-decoder these are the decoder's; `source_BS`, right-padded, holds the encoder's.
    """

    tokens_BT: jax.Array
    real_BT: jax.Array  # bool: holds a token, neither padding nor unused
    count: jax.Array
    source_BS: jax.Array | None = None
    source_real_BS: jax.Array | None = None
    prompt: int = struct.field(pytree_node=False, default=0)

    @staticmethod
    def begin(
        tokens_BT: jax.Array, segments_BT: jax.Array, room: int, source_BS: jax.Array | None = None,
        source_segments_BS: jax.Array | None = None,
    ) -> "History":  # fmt: skip
        """Start from prompts (segment 0: padding), with capacity for `room` new tokens."""
        wider = ((0, 0), (0, room))
        source_real_BS = None if source_BS is None else jnp.asarray(source_segments_BS) > 0
        return History(
            tokens_BT=jnp.pad(jnp.asarray(tokens_BT), wider),
            real_BT=jnp.pad(jnp.asarray(segments_BT) > 0, wider),
            count=jnp.zeros((), jnp.int32),
            source_BS=source_BS,
            source_real_BS=source_real_BS,
            prompt=tokens_BT.shape[1],
        )

    def add(self, tokens_B: jax.Array) -> "History":
        """Append one token a row."""
        write, at = jax.lax.dynamic_update_index_in_dim, self.prompt + self.count
        return self.replace(
            tokens_BT=write(self.tokens_BT, tokens_B.astype(self.tokens_BT.dtype), at, 1),
            real_BT=write(self.real_BT, jnp.ones_like(tokens_B, bool), at, 1),
            count=self.count + 1,
        )

    def select(self, rows_B: jax.Array) -> "History":
        """Return the history whose row i is row `rows_B[i]` of this one."""
        rows = {"tokens_BT": self.tokens_BT[rows_B], "real_BT": self.real_BT[rows_B]}
        if self.source_BS is not None:
            rows |= {"source_BS": self.source_BS[rows_B], "source_real_BS": self.source_real_BS[rows_B]}
        return self.replace(**rows)

    def source(self) -> tuple[jax.Array, jax.Array]:
        """Return the tokens of the source and their mask; without an encoder the prompt is the source."""
        if self.source_BS is not None:
            return self.source_BS, self.source_real_BS
        return self.tokens_BT[:, : self.prompt], self.real_BT[:, : self.prompt]

    def last(self, size: int) -> tuple[jax.Array, jax.Array]:
        """Return the last `size` tokens (B, size), and for each row whether it has that many."""
        if size > self.tokens_BT.shape[1]:
            return jnp.zeros((len(self.tokens_BT), size), jnp.int32), jnp.zeros(len(self.tokens_BT), bool)
        at = self.prompt + self.count - size
        tokens_BT, real_BT = (jax.lax.dynamic_slice_in_dim(x, at, size, 1) for x in (self.tokens_BT, self.real_BT))
        return tokens_BT, real_BT.all(1) & (at >= 0)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Penalties and bans, all off by default; hashable, a static argument of compiled functions.

    Differs from Hugging Face in that padding never counts as text, `forced_begin` holds for the first new token however
    long the prompt, and a row left without any allowed token gets its scores unbanned.
    """

    stops: tuple[int, ...] = ()  # ids that end a text
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()  # added to the last id after the others
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0
    encoder_no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of ids that must not appear
    min_length: int = 0  # tokens of prompt and continuation before a stop is allowed
    min_new_tokens: int = 0
    forced_begin: int | None = None  # the first new token (BART's and mBART's forced BOS)
    forced_end: int | None = None  # the last of `limit` new tokens
    limit: int = 0
    length_penalty_start: int = 0  # after so many new tokens, |score| * (factor^beyond - 1) is added to the stops
    length_penalty_factor: float = 1.0
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()  # not as first new token
    forced_prefix: tuple[int, ...] = ()  # the first new tokens
    renormalise: bool = False

    def __post_init__(self):
        for name in ("repetition_penalty", "encoder_repetition_penalty", "length_penalty_factor"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"{name}={value} must be positive; 1 turns it off")
        for name in ("frequency_penalty", "presence_penalty"):
            check(math.isfinite(getattr(self, name)), f"{name}={getattr(self, name)} must be a number; 0 turns it off")
        for name in ("no_repeat_ngram", "encoder_no_repeat_ngram", "min_length", "min_new_tokens"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be a number of tokens, 0 or more")
        check(self.forced_end is None or self.limit >= 1, "forced_end needs the limit of new tokens")
        full = all(self.bad_words) and all(ids for ids, _ in self.sequence_bias)
        check(full, "bad_words or sequence_bias holds a sequence of no tokens; leave it out")

    def process(self, scores_BV: jax.Array, history: History) -> jax.Array:
        """Apply the rules that are switched on, in the order of Hugging Face's generate."""
        raw_BV, count = scores_BV, history.count

        # Penalties, which depend on the tokens so far.
        if self.sequence_bias:
            scores_BV = sequence_bias(scores_BV, history, self.sequence_bias)
        if self.encoder_repetition_penalty != 1:
            scores_BV = repetition(scores_BV, *history.source(), 1 / self.encoder_repetition_penalty)
        if self.repetition_penalty != 1:
            scores_BV = repetition(scores_BV, history.tokens_BT, history.real_BT, self.repetition_penalty)
        if self.frequency_penalty or self.presence_penalty:
            scores_BV = frequency(scores_BV, history, self.frequency_penalty, self.presence_penalty)

        # Bans of sequences; a stop is no bad word, or no text would ever end.
        if self.no_repeat_ngram:
            text = history.tokens_BT, history.real_BT
            scores_BV = no_repeat_ngram(scores_BV, history, *text, self.no_repeat_ngram)
        if self.encoder_no_repeat_ngram:
            scores_BV = no_repeat_ngram(scores_BV, history, *history.source(), self.encoder_no_repeat_ngram)
        words = [ids for ids in self.bad_words if ids not in [(stop,) for stop in self.stops]]
        if words:
            scores_BV = sequence_bias(scores_BV, history, [(ids, -math.inf) for ids in words])

        # When a text may end, and which tokens must stand at its ends.
        if self.min_length and self.stops:
            short_B1 = (history.real_BT.sum(1) < self.min_length)[:, None]
            scores_BV = ban(scores_BV, self.stops, short_B1)
        if self.min_new_tokens and self.stops:
            scores_BV = ban(scores_BV, self.stops, count < self.min_new_tokens)
        if self.forced_begin is not None:
            scores_BV = force(scores_BV, self.forced_begin, count == 0)
        if self.forced_end is not None:
            scores_BV = force(scores_BV, self.forced_end, count == self.limit - 1)
        if self.length_penalty_factor != 1 and self.stops:
            scores_BV = exponential_length(scores_BV, count, self.stops, self.length_penalty_start, self.length_penalty_factor)
        if self.suppress:
            scores_BV = ban(scores_BV, self.suppress)
        if self.begin_suppress:
            scores_BV = ban(scores_BV, self.begin_suppress, count == 0)
        if self.forced_prefix:
            forced = jnp.asarray(self.forced_prefix)[jnp.minimum(count, len(self.forced_prefix) - 1)]
            scores_BV = force(scores_BV, forced, count < len(self.forced_prefix))

        # A row without any allowed token would draw from nothing but NaN: it ignores the rules.
        if scores_BV is not raw_BV:
            scores_BV = jnp.where((scores_BV > LOWEST).any(-1, keepdims=True), scores_BV, raw_BV)
        return jax.nn.log_softmax(scores_BV, -1) if self.renormalise else scores_BV


def scatter(scores_BV: jax.Array, tokens_BT: jax.Array, mask_BT: jax.Array, values: jax.Array | float) -> jax.Array:
    """Set the scores of the masked tokens; a token that appears twice must get the same value."""
    tokens_BT = jnp.where(mask_BT, tokens_BT, scores_BV.shape[1])  # out of range: dropped
    return scores_BV.at[jnp.arange(len(scores_BV))[:, None], tokens_BT].set(values, mode="drop")


def repetition(scores_BV: jax.Array, tokens_BT: jax.Array, real_BT: jax.Array, penalty: float) -> jax.Array:
    """Divide positive scores of tokens of the text by the penalty, multiply negative ones (CTRL, Keskar et al. 2019)."""
    seen_BT = jnp.take_along_axis(scores_BV, tokens_BT, 1, mode="clip")
    seen_BT = jnp.where(seen_BT < 0, seen_BT * penalty, seen_BT / penalty)
    return scatter(scores_BV, tokens_BT, real_BT, seen_BT)


def frequency(scores_BV: jax.Array, history: History, per_time: float, once: float) -> jax.Array:
    """Subtract `per_time` for each time a token was generated, and `once` if it was at all; prompts do not count."""
    tokens_BT, real_BT = (x[:, history.prompt :] for x in (history.tokens_BT, history.real_BT))
    if per_time:
        rows_B1 = jnp.arange(len(scores_BV))[:, None]
        counts_BV = jnp.zeros_like(scores_BV).at[rows_B1, tokens_BT].add(real_BT.astype(scores_BV.dtype), mode="drop")
        scores_BV = scores_BV - per_time * counts_BV
    if once:
        lower_BT = jnp.take_along_axis(scores_BV, tokens_BT, 1, mode="clip") - once
        scores_BV = scatter(scores_BV, tokens_BT, real_BT, lower_BT)
    return scores_BV


def no_repeat_ngram(scores_BV: jax.Array, history: History, tokens_BT: jax.Array, real_BT: jax.Array, size: int) -> jax.Array:
    """Ban tokens that would repeat an n-gram of `tokens_BT`, the text or its source (Paulus et al. 2017)."""
    windows = tokens_BT.shape[1] - size + 1
    if windows < 1:
        return scores_BV
    end_BT, enough_B = history.last(size - 1)
    # Padding is no text: a window that touches it, or a text of fewer than n - 1 tokens, bans nothing.
    same_BT = real_BT[:, :windows] & real_BT[:, size - 1 :] & enough_B[:, None]
    for i in range(size - 1):
        same_BT &= tokens_BT[:, i : i + windows] == end_BT[:, i, None]
    return scatter(scores_BV, tokens_BT[:, size - 1 :], same_BT, -jnp.inf)


def sequence_bias(scores_BV: jax.Array, history: History, biases: Sequence[tuple[Sequence[int], float]]) -> jax.Array:
    """Add a bias to the last token of each sequence in the rows that end in the tokens before it."""
    # Sequences of one length are one array, compared with the end of the text at once.
    for size in sorted({len(ids) for ids, _ in biases}):
        own = [(ids, bias) for ids, bias in biases if len(ids) == size]
        ids_PT, bias_P = np.array([ids for ids, _ in own], np.int32), np.array([bias for _, bias in own], np.float32)
        end_BT, enough_B = history.last(size - 1)
        same_BP = (end_BT[:, None] == ids_PT[:, :-1]).all(-1) & enough_B[:, None]
        scores_BV = scores_BV.at[:, ids_PT[:, -1]].add(jnp.where(same_BP, bias_P, 0), mode="drop")
    return scores_BV


def ban(scores_BV: jax.Array, ids: Sequence[int], where: jax.Array | bool = True) -> jax.Array:
    """Ban tokens where the condition holds, a scalar or (B, 1)."""
    banned_V = np.isin(np.arange(scores_BV.shape[1]), ids)
    return jnp.where(banned_V & jnp.asarray(where), -jnp.inf, scores_BV)


def force(scores_BV: jax.Array, token: jax.Array | int, where: jax.Array) -> jax.Array:
    """Leave one token, at a score of 0, where the condition holds."""
    only_V = jnp.where(jnp.arange(scores_BV.shape[1]) == token, 0.0, -jnp.inf)
    return jnp.where(where, only_V, scores_BV)


def exponential_length(scores_BV: jax.Array, count: jax.Array, stops: Sequence[int], start: int, factor: float) -> jax.Array:
    """Raise the stops by |score| * (factor^(count - start) - 1) once more than `start` tokens are new."""
    stops_V = np.isin(np.arange(scores_BV.shape[1]), stops)
    beyond = jnp.maximum(count - start, 0).astype(jnp.float32)
    # A banned stop stays out of this: -inf raised by its own size would be NaN.
    raised_BV = jnp.abs(scores_BV) * (jnp.float32(factor) ** beyond - 1)
    return scores_BV + jnp.where(stops_V & jnp.isfinite(scores_BV), raised_BV, 0)
