"""A linear-chain conditional random field over tags (Lafferty et al. 2001), for rows that hold several sequences.

A row's sequences are one chain: where one begins, the step between two tags scores the end of the one and the start of
the other, which falls apart into a factor of each. So sums over paths of the row are products over its sequences.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.models.layers import named

FORBIDDEN = -1e4  # finite: a score that no other makes up for


class Chain(nn.Module):
    """Scores of one tag after another ("transitions", from and to), of the first tag and of the last."""

    tags: int
    std: float = 0.02

    @nn.compact
    def __call__(self):
        init = nn.initializers.normal(self.std)
        steps_CC = self.param("transitions", named(init, (None, None)), (self.tags, self.tags))
        start_C = self.param("start", named(init, (None,)), (self.tags,))
        end_C = self.param("end", named(init, (None,)), (self.tags,))
        return steps_CC, start_C, end_C


Weights = tuple[jax.Array, jax.Array, jax.Array]


def steps(weights: Weights, begins_B: jax.Array) -> jax.Array:
    """Scores of going from one tag to the next (B, C, C), where a sequence begins through the end of the one before."""
    steps_CC, start_C, end_C = weights
    return jnp.where(begins_B[:, None, None], end_C[:, None] + start_C, steps_CC)


def log_partition(scores_BWC: jax.Array, real_BW: jax.Array, begins_BW: jax.Array, weights: Weights) -> jax.Array:
    """Sum exp(score) over all taggings of each row's sequences: its logarithm (B,).

    `scores_BWC`: of each tag at each word; `real_BW`: words that are there, first in the row; `begins_BW`: where a
    sequence begins. A row without words gives 0.
    """
    _, start_C, end_C = weights

    def step(alpha_BC, inputs):
        scores_BC, real_B, begins_B = inputs
        onward_BC = scores_BC + jax.nn.logsumexp(alpha_BC[:, :, None] + steps(weights, begins_B), 1)
        return jnp.where(real_B[:, None], onward_BC, alpha_BC), None

    first_BC = scores_BWC[:, 0] + start_C
    rest = (scores_BWC[:, 1:], real_BW[:, 1:], begins_BW[:, 1:])
    alpha_BC, _ = jax.lax.scan(step, first_BC, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), rest))
    return jnp.where(real_BW[:, 0], jax.nn.logsumexp(alpha_BC + end_C, 1), 0)


def path_score(
    scores_BWC: jax.Array, tags_BW: jax.Array, real_BW: jax.Array, begins_BW: jax.Array, weights: Weights
) -> jax.Array:
    """Score one tagging of each row's sequences (B,)."""
    steps_CC, start_C, end_C = weights
    here_BW = jnp.take_along_axis(scores_BWC, tags_BW[..., None], 2)[..., 0]
    before_BW, after_BW = tags_BW[:, :-1], tags_BW[:, 1:]
    inner_BW = jnp.where(begins_BW[:, 1:], end_C[before_BW] + start_C[after_BW], steps_CC[before_BW, after_BW])
    last_B = jnp.take_along_axis(tags_BW, jnp.maximum(real_BW.sum(1, keepdims=True) - 1, 0), 1)[:, 0]
    total_B = jnp.sum(here_BW * real_BW, 1) + jnp.sum(inner_BW * real_BW[:, 1:], 1)
    return jnp.where(real_BW[:, 0], total_B + start_C[tags_BW[:, 0]] + end_C[last_B], 0)


def viterbi(scores_BWC: jax.Array, real_BW: jax.Array, begins_BW: jax.Array, weights: Weights) -> jax.Array:
    """Find the best tagging of each row's sequences, int32 (B, W); words that are not there repeat the last tag."""
    _, start_C, end_C = weights
    same_C = jnp.arange(scores_BWC.shape[2])

    def forward(best_BC, inputs):
        scores_BC, real_B, begins_B = inputs
        ways_BCC = best_BC[:, :, None] + steps(weights, begins_B)
        onward_BC = scores_BC + ways_BCC.max(1)
        came_BC = jnp.where(real_B[:, None], ways_BCC.argmax(1), same_C)
        return jnp.where(real_B[:, None], onward_BC, best_BC), came_BC

    def backward(tag_B, came_BC):
        before_B = jnp.take_along_axis(came_BC, tag_B[:, None], 1)[:, 0]
        return before_B, tag_B

    rest = (scores_BWC[:, 1:], real_BW[:, 1:], begins_BW[:, 1:])
    best_BC, came_WBC = jax.lax.scan(
        forward, scores_BWC[:, 0] + start_C, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), rest)
    )
    last_B = (best_BC + end_C).argmax(1)
    first_B, tags_WB = jax.lax.scan(backward, last_B, came_WBC, reverse=True)
    return jnp.concatenate([first_B[:, None], tags_WB.T], 1).astype(jnp.int32)


def forbid(weights: Weights, tags: Sequence[str]) -> Weights:
    """Add -1e4 to what BIO does not allow: I-X after anything but B-X or I-X, and first."""
    inside = np.array([tag.startswith("I-") for tag in tags])
    own = np.array([[one[:2] in ("B-", "I-") and one[2:] == other[2:] for other in tags] for one in tags])
    steps_CC, start_C, end_C = weights
    return steps_CC + FORBIDDEN * (inside & ~own), start_C + FORBIDDEN * inside, end_C
