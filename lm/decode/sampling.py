"""Sampling: temperature, truncation and the draw, pure functions on scores (..., V), -inf where a token is banned.

None of them sorts: a threshold is computed, or searched bit by bit among the floats (`leading`).
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lm.errors import check, check_choices, check_range


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the draw; hashable, a static argument of compiled functions.

    0 turns `top_k`, `min_p`, `epsilon` and `eta` off, 1 `top_p` and `typical_p`.
    """

    strategy: Literal["greedy", "sample"] = "sample"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon: float = 0.0
    eta: float = 0.0

    def __post_init__(self):
        check_choices(self)
        check(
            0 < self.temperature < math.inf,
            f"temperature={self.temperature} must be positive; strategy=greedy takes the likeliest token",
        )
        check(self.top_k >= 0, f"top_k={self.top_k} must be a number of tokens, or 0 for all of them")
        for name in ("top_p", "typical_p"):
            check(0 < getattr(self, name) <= 1, f"{name}={getattr(self, name)} must lie in (0, 1]; 1 keeps every token")
        check(0 <= self.min_p <= 1, f"min_p={self.min_p} must lie in [0, 1]; 0 keeps every token")
        check_range(self, 0, 1, "epsilon", "eta")

    def choose(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Pick a token (B,) for each row: the likeliest, or one drawn with the row's own key."""
        if self.strategy == "greedy":
            return argmax(logits_BV)
        return argmax(self.process(logits_BV) + jax.vmap(lambda key: noise(key, logits_BV.shape[-1]))(keys_B))

    def process(self, scores: jax.Array) -> jax.Array:
        """Apply temperature and truncations, in the order of Hugging Face's warpers."""
        if self.temperature != 1:
            scores = temperature(scores, self.temperature)
        if 0 < self.top_k < scores.shape[-1]:
            scores = top_k(scores, self.top_k)
        if self.top_p < 1:
            scores = top_p(scores, self.top_p)
        if self.min_p:
            scores = min_p(scores, self.min_p)
        if self.typical_p < 1:
            scores = typical(scores, self.typical_p)
        if self.epsilon:
            scores = epsilon(scores, self.epsilon)
        return eta(scores, self.eta) if self.eta else scores


def temperature(scores: jax.Array, value: float) -> jax.Array:
    """Divide by the temperature: below 1 sharper, above 1 flatter."""
    return scores / value


def top_k(scores: jax.Array, count: int) -> jax.Array:
    """Keep the scores at or above the count-th largest (Fan et al. 2018); ties are kept."""
    return jnp.where(leading(scores, jnp.ones_like(scores, jnp.int32), count), scores, -jnp.inf)


def top_p(scores: jax.Array, mass: float) -> jax.Array:
    """Keep the likeliest tokens up to and with the one whose probability reaches the mass (Holtzman et al. 2020)."""
    return jnp.where(leading(scores, jax.nn.softmax(scores, -1), mass), scores, -jnp.inf)


def min_p(scores: jax.Array, share: float) -> jax.Array:
    """Keep tokens at least `share` times as probable as the likeliest (Nguyen et al. 2024)."""
    # A ratio of probabilities is a difference of scores: no normaliser is needed.
    return kept_above(scores, scores, scores.max(-1, keepdims=True) + math.log(share))


def typical(scores: jax.Array, mass: float) -> jax.Array:
    """Keep the tokens whose surprise -log p is nearest to the entropy, up to the mass (Meister et al. 2022)."""
    log_p, p, entropy = surprise(scores)
    return jnp.where(leading(-jnp.abs(log_p + entropy), p, mass), scores, -jnp.inf)


def epsilon(scores: jax.Array, least: float) -> jax.Array:
    """Keep tokens of at least this probability, and the likeliest (Hewitt et al. 2022)."""
    log_p, _, _ = surprise(scores)
    return kept_above(scores, log_p, math.log(least))


def eta(scores: jax.Array, least: float) -> jax.Array:
    """Keep tokens of probability min(least, sqrt(least) * exp(-entropy)) or more, and the likeliest (Hewitt et al. 2022)."""
    log_p, _, entropy = surprise(scores)
    return kept_above(scores, log_p, jnp.minimum(math.log(least), 0.5 * math.log(least) - entropy))


def kept_above(scores: jax.Array, measured: jax.Array, threshold: float | jax.Array) -> jax.Array:
    """Keep scores whose measure reaches the threshold and, always, the largest score and its equals."""
    # A recomputed maximum may equal no score; then `argmax` still keeps one.
    first = jnp.arange(scores.shape[-1]) == argmax(scores)[..., None]
    kept = (measured >= threshold) | (scores == scores.max(-1, keepdims=True)) | first
    return jnp.where(kept, scores, -jnp.inf)


def surprise(scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return log p and p of each token, and the entropy in nats with the last axis kept."""
    log_p = scores - log_sum(scores)
    p = jnp.exp(log_p)
    # A banned token has p = 0 and log p = -inf, whose product is NaN.
    return log_p, p, -total(jnp.where(p > 0, p * log_p, 0))


def leading(scores: jax.Array, weights: jax.Array, goal: float) -> jax.Array:
    """Mark the fewest largest scores whose weights add up to the goal, ties with the last of them included.

    No sort, which costs milliseconds a row for a large vocabulary: the threshold is searched bit by bit, in 32 sums, among
    the floats read as whole numbers of the same order. The marks come out of the loop, too: compared after it, scores
    that XLA computes anew may be rounded otherwise than those among which the threshold was searched.
    """
    # As unsigned numbers, positive floats are in order; negative ones are with all bits flipped.
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    order = jnp.where(bits & sign, ~bits, bits | sign)

    def settle(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, marked = carry
        candidate = low | (sign >> i.astype(jnp.uint32))
        above = order >= candidate
        enough = total(jnp.where(above, weights, 0)) >= goal
        return jnp.where(enough, candidate, low), jnp.where(enough, above, marked)

    return jax.lax.fori_loop(0, 32, settle, (jnp.zeros_like(order[..., :1]), jnp.ones_like(order, bool)))[1]


LANES = 256


def total(x: jax.Array) -> jax.Array:
    """Sum the last axis, kept with size 1, in lanes: XLA on a CPU would add one float after another."""
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)])
    return x.reshape(*x.shape[:-1], -1, LANES).sum(-2).sum(-1, keepdims=True)


def argmax(x: jax.Array) -> jax.Array:
    """Return the index of the largest entry, the first of several.

    As fast as two plain reductions, where `jnp.argmax` takes two to five times as long. Those two, the maximum and the
    first index equal to it, can fail: XLA may compute x anew for each use and round otherwise, and then no entry is equal.
    """
    return jax.lax.top_k(x, 1)[1][..., 0]


def noise(key: jax.Array, size: int) -> jax.Array:
    """Draw Gumbel noise: the largest of scores + noise is a sample of softmax(scores)."""
    return jax.random.gumbel(key, (size,), jnp.float32)


def log_probability(logits_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
    """Natural log-probability (B,) of a token under the model itself: the logits as they came, temperature 1."""
    return jnp.take_along_axis(logits_BV, tokens_B[:, None], -1)[:, 0] - log_sum(logits_BV)[:, 0]


def log_sum(scores: jax.Array) -> jax.Array:
    """Return log(sum(exp(scores))) over the last axis, kept with size 1."""
    top = scores.max(-1, keepdims=True)
    return top + jnp.log(total(jnp.exp(scores - top)))
