"""A linear-chain conditional random field over tags (Lafferty et al. 2001), for rows that hold several sequences.

A row's sequences are one chain: where one starts, the transition is the end score of the last tag plus the start score
of the first, a product of two factors. So sums over paths of the row are products over its sequences. A sequence may be
a piece of a sentence: at a cut the neighbour is unknown, and start or end is not scored.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.models.layers import named

FORBIDDEN = -1e4  # finite, as infinities make NaN gradients; far below any sum of scores
SCHEMES = ("IOB2", "IOB1", "IOBES")  # of spans; the first of equally good ones is taken
NOISE = 0.05  # share of annotation errors; tags in another scheme break a third of the transitions or more


class Chain(nn.Module):
    """Transition scores (from, to), and scores of the first and the last tag."""

    tags: int
    std: float = 0.02

    @nn.compact
    def __call__(self) -> "Weights":
        init = nn.initializers.normal(self.std)
        steps_CC = self.param("transitions", named(init, (None, None)), (self.tags, self.tags))
        start_C = self.param("start", named(init, (None,)), (self.tags,))
        end_C = self.param("end", named(init, (None,)), (self.tags,))
        return steps_CC, start_C, end_C


Weights = tuple[jax.Array, jax.Array, jax.Array]


class Places(NamedTuple):
    """Boundaries of the sequences in rows, bool (B, W) each.

    `real`: words, before the padding; `begins`: the first word of each sequence. `opens`, `closes`: the first and the
    last word of a sentence, which have a start and an end score; a sequence without them is cut there.
    """

    real: jax.Array
    begins: jax.Array
    opens: jax.Array
    closes: jax.Array

    def closed(self) -> jax.Array:
        """Return, bool (B,), whether the last word of the row is the last of a sentence."""
        last_B1 = jnp.maximum(self.real.sum(1, keepdims=True) - 1, 0)
        return jnp.take_along_axis(self.closes, last_B1, 1)[:, 0]


def rest(scores_BWC: jax.Array, places: Places) -> tuple[jax.Array, ...]:
    """Return the inputs of a scan over the words after the first, words leading; `closes` is that of the word before."""
    later = scores_BWC[:, 1:], *(x[:, 1:] for x in places[:3]), places.closes[:, :-1]
    return tuple(jnp.moveaxis(x, 1, 0) for x in later)


def steps(weights: Weights, begins_B: jax.Array, opens_B: jax.Array, closed_B: jax.Array) -> jax.Array:
    """Return transition scores (B, C, C), at the start of a sequence those through the end of the last one."""
    steps_CC, start_C, end_C = weights
    apart_BCC = closed_B[:, None, None] * end_C[:, None] + opens_B[:, None, None] * start_C
    return jnp.where(begins_B[:, None, None], apart_BCC, steps_CC)


def log_partition(scores_BWC: jax.Array, places: Places, weights: Weights) -> jax.Array:
    """Return the log-partition of each row, (B,): log of the sum of exp(score) over its taggings, 0 without words.

    `scores_BWC`: emission scores of each tag at each word.
    """
    _, start_C, end_C = weights

    # The forward algorithm; padding keeps the last alpha, so that rows of any length end alike.
    def step(alpha_BC: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        scores_BC, real_B, *edges = inputs
        onward_BC = scores_BC + jax.nn.logsumexp(alpha_BC[:, :, None] + steps(weights, *edges), 1)
        return jnp.where(real_B[:, None], onward_BC, alpha_BC), None

    first_BC = scores_BWC[:, 0] + places.opens[:, :1] * start_C
    alpha_BC, _ = jax.lax.scan(step, first_BC, rest(scores_BWC, places))
    last_BC = alpha_BC + places.closed()[:, None] * end_C
    return jnp.where(places.real[:, 0], jax.nn.logsumexp(last_BC, 1), 0)


def path_score(scores_BWC: jax.Array, tags_BW: jax.Array, places: Places, weights: Weights) -> jax.Array:
    """Return the score of one tagging of each row, (B,)."""
    steps_CC, start_C, end_C = weights
    here_BW = jnp.take_along_axis(scores_BWC, tags_BW[..., None], 2)[..., 0]
    here_BW += places.opens * start_C[tags_BW] + places.closes * end_C[tags_BW]
    # Where a sequence begins there is no transition: the end and start scores above stand for it.
    inner_BW = jnp.where(places.begins[:, 1:], 0, steps_CC[tags_BW[:, :-1], tags_BW[:, 1:]])
    return jnp.sum(here_BW * places.real, 1) + jnp.sum(inner_BW * places.real[:, 1:], 1)


def viterbi(scores_BWC: jax.Array, places: Places, weights: Weights) -> jax.Array:
    """Return the best tagging of each row, int32 (B, W); padding repeats the last tag."""
    _, start_C, end_C = weights
    same_C = jnp.arange(scores_BWC.shape[2])

    # Padding points back to its own tag: the backward scan then starts anywhere behind the last word.
    def forward(best_BC: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        scores_BC, real_B, *edges = inputs
        ways_BCC = best_BC[:, :, None] + steps(weights, *edges)
        onward_BC = scores_BC + ways_BCC.max(1)
        came_BC = jnp.where(real_B[:, None], ways_BCC.argmax(1), same_C)
        return jnp.where(real_B[:, None], onward_BC, best_BC), came_BC

    def backward(tag_B: jax.Array, came_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
        before_B = jnp.take_along_axis(came_BC, tag_B[:, None], 1)[:, 0]
        return before_B, tag_B

    first_BC = scores_BWC[:, 0] + places.opens[:, :1] * start_C
    best_BC, came_WBC = jax.lax.scan(forward, first_BC, rest(scores_BWC, places))
    last_B = (best_BC + places.closed()[:, None] * end_C).argmax(1)
    first_B, tags_WB = jax.lax.scan(backward, last_B, came_WBC, reverse=True)
    return jnp.concatenate([first_B[:, None], tags_WB.T], 1).astype(jnp.int32)


def best_path(scores_WC: np.ndarray, weights: tuple[np.ndarray, ...]) -> list[int]:
    """Return the best tagging of one whole sentence; in numpy, as jax would compile for every length."""
    steps_CC, start_C, end_C = weights
    best_C, came = scores_WC[0] + start_C, []
    for scores_C in scores_WC[1:]:
        ways_CC = best_C[:, None] + steps_CC
        came.append(ways_CC.argmax(0))
        best_C = scores_C + ways_CC.max(0)
    tags = [int((best_C + end_C).argmax())]
    for came_C in reversed(came):
        tags.append(int(came_C[tags[-1]]))
    return tags[::-1]


# -- schemes of spans --------------------------------------------------------------------------------------------------


def parted(tag: str) -> tuple[str, str]:
    """Split LETTER-KIND; any other tag is O. BMES and BILOU are IOBES in other letters."""
    letter = {"M": "I", "L": "E", "U": "S"}.get(tag[:1], tag[:1])
    return (letter, tag[2:]) if letter in tuple("BIES") and tag[1:2] == "-" and tag[2:] else ("O", "")


@cache
def allows(scheme: str, before: str, after: str) -> bool:
    """Whether a tag may follow another; beyond both ends of a sentence is O.

    IOB2 (BIO): B-X starts a span. IOB1 (Ramshaw and Marcus 1995; CoNLL-2003): I-X does, B-X only after a span of the same
    kind. IOBES: B-X starts a span of several words, E-X ends it, S-X is a span of one word.
    """
    (one, kind), (two, other) = parted(before), parted(after)
    if scheme == "IOBES":
        inside = one in "BI"
        return inside == (two in "IE") and (not inside or kind == other)
    follows = one in "BI" and kind == other
    return two in "OBI" and (follows or two != {"IOB1": "B", "IOB2": "I"}[scheme])


def odd_step(scheme: str, tags: Sequence[str]) -> str:
    """Describe the first transition of a sentence that breaks a scheme, "" if none does."""
    for k, (before, after) in enumerate(pairwise(("O", *tags, "O"))):
        if not allows(scheme, before, after):
            return f"{before} last" if k == len(tags) else f"{after} after {before} at word {k + 1}" if k else f"{after} first"
    return ""


def nearest(sentences: Iterable[Sequence[str]]) -> tuple[Any, float]:
    """Return the scheme with the fewest broken transitions and their share of those at a start or end of spans.

    ("none", 0) without spans.
    """
    counts = Counter(pair for tags in sentences for pair in pairwise(("O", *tags, "O")))
    # Repeated tags, most of them O, say little about a scheme and would dilute the share of broken steps.
    counts = Counter({pair: n for pair, n in counts.items() if parted(pair[0]) != parted(pair[1])})
    if not counts:
        return "none", 0.0
    broken = {scheme: sum(n for pair, n in counts.items() if not allows(scheme, *pair)) for scheme in SCHEMES}
    best = min(SCHEMES, key=broken.__getitem__)
    return best, broken[best] / counts.total()


def forbid(weights: Weights, tags: Sequence[str], scheme: str) -> Weights:
    """Add -1e4 to the scores of transitions, first and last tags that a scheme forbids."""
    wrong_CC = np.array([[not allows(scheme, one, other) for other in tags] for one in tags])
    first_C = np.array([not allows(scheme, "O", tag) for tag in tags])
    last_C = np.array([not allows(scheme, tag, "O") for tag in tags])
    steps_CC, start_C, end_C = weights
    return steps_CC + FORBIDDEN * wrong_CC, start_C + FORBIDDEN * first_C, end_C + FORBIDDEN * last_C
