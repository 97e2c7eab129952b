"""A linear-chain conditional random field over tags (Lafferty et al. 2001), for rows that hold several sequences.

A row's sequences are one chain: where one begins, the step between two tags scores the end of the one and the start of
the other, which falls apart into a factor of each. So sums over paths of the row are products over its sequences. A
sequence may be a piece of a sentence: where it was cut, what is on the other side is not known, and nothing is scored.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.models.layers import named

FORBIDDEN = -1e4  # finite: a score that no other makes up for
SCHEMES = ("IOB2", "IOB1", "IOBES")  # how tags write spans; of those that fit alike, the first
NOISE = 0.05  # a slip of the annotators now and then; tags in another scheme break a third of the steps or more


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


class Places(NamedTuple):
    """Where sequences lie in rows, bool (B, W) each.

    `real`: words that are there, first in the row; `begins`: the first of each sequence. `opens` and `closes`: the first
    and the last word of a sentence, which have a start and an end score; a sequence without them is cut there.
    """

    real: jax.Array
    begins: jax.Array
    opens: jax.Array
    closes: jax.Array

    def closed(self) -> jax.Array:
        """Tell rows whose last word is the last of a sentence, bool (B,)."""
        last_B1 = jnp.maximum(self.real.sum(1, keepdims=True) - 1, 0)
        return jnp.take_along_axis(self.closes, last_B1, 1)[:, 0]


def rest(scores_BWC: jax.Array, places: Places) -> tuple[jax.Array, ...]:
    """Give what a scan over the words after the first reads, words in front; of `closes` that of the word before."""
    later = scores_BWC[:, 1:], *(x[:, 1:] for x in places[:3]), places.closes[:, :-1]
    return tuple(jnp.moveaxis(x, 1, 0) for x in later)


def steps(weights: Weights, begins_B: jax.Array, opens_B: jax.Array, closed_B: jax.Array) -> jax.Array:
    """Scores of going from one tag to the next (B, C, C), where a sequence begins through the end of the one before."""
    steps_CC, start_C, end_C = weights
    apart_BCC = closed_B[:, None, None] * end_C[:, None] + opens_B[:, None, None] * start_C
    return jnp.where(begins_B[:, None, None], apart_BCC, steps_CC)


def log_partition(scores_BWC: jax.Array, places: Places, weights: Weights) -> jax.Array:
    """Sum exp(score) over all taggings of each row's sequences: its logarithm (B,).

    `scores_BWC`: of each tag at each word. A row without words gives 0.
    """
    _, start_C, end_C = weights

    def step(alpha_BC, inputs):
        scores_BC, real_B, *edges = inputs
        onward_BC = scores_BC + jax.nn.logsumexp(alpha_BC[:, :, None] + steps(weights, *edges), 1)
        return jnp.where(real_B[:, None], onward_BC, alpha_BC), None

    first_BC = scores_BWC[:, 0] + places.opens[:, :1] * start_C
    alpha_BC, _ = jax.lax.scan(step, first_BC, rest(scores_BWC, places))
    last_BC = alpha_BC + places.closed()[:, None] * end_C
    return jnp.where(places.real[:, 0], jax.nn.logsumexp(last_BC, 1), 0)


def path_score(scores_BWC: jax.Array, tags_BW: jax.Array, places: Places, weights: Weights) -> jax.Array:
    """Score one tagging of each row's sequences (B,)."""
    steps_CC, start_C, end_C = weights
    here_BW = jnp.take_along_axis(scores_BWC, tags_BW[..., None], 2)[..., 0]
    here_BW += places.opens * start_C[tags_BW] + places.closes * end_C[tags_BW]
    inner_BW = jnp.where(places.begins[:, 1:], 0, steps_CC[tags_BW[:, :-1], tags_BW[:, 1:]])
    return jnp.sum(here_BW * places.real, 1) + jnp.sum(inner_BW * places.real[:, 1:], 1)


def viterbi(scores_BWC: jax.Array, places: Places, weights: Weights) -> jax.Array:
    """Find the best tagging of each row's sequences, int32 (B, W); words that are not there repeat the last tag."""
    _, start_C, end_C = weights
    same_C = jnp.arange(scores_BWC.shape[2])

    def forward(best_BC, inputs):
        scores_BC, real_B, *edges = inputs
        ways_BCC = best_BC[:, :, None] + steps(weights, *edges)
        onward_BC = scores_BC + ways_BCC.max(1)
        came_BC = jnp.where(real_B[:, None], ways_BCC.argmax(1), same_C)
        return jnp.where(real_B[:, None], onward_BC, best_BC), came_BC

    def backward(tag_B, came_BC):
        before_B = jnp.take_along_axis(came_BC, tag_B[:, None], 1)[:, 0]
        return before_B, tag_B

    first_BC = scores_BWC[:, 0] + places.opens[:, :1] * start_C
    best_BC, came_WBC = jax.lax.scan(forward, first_BC, rest(scores_BWC, places))
    last_B = (best_BC + places.closed()[:, None] * end_C).argmax(1)
    first_B, tags_WB = jax.lax.scan(backward, last_B, came_WBC, reverse=True)
    return jnp.concatenate([first_B[:, None], tags_WB.T], 1).astype(jnp.int32)


def best_path(scores_WC: np.ndarray, weights: tuple[np.ndarray, ...]) -> list[int]:
    """Find the best tagging of one whole sentence; numpy, as there is no end to the lengths that jax would compile for."""
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


# -- what may follow what ----------------------------------------------------------------------------------------------


def parted(tag: str) -> tuple[str, str]:
    """Part LETTER-KIND; all that is no part of a span is O. BMES and BILOU are IOBES in other letters."""
    letter = {"M": "I", "L": "E", "U": "S"}.get(tag[:1], tag[:1])
    return (letter, tag[2:]) if letter in tuple("BIES") and tag[1:2] == "-" and tag[2:] else ("O", "")


@cache
def allows(scheme: str, before: str, after: str) -> bool:
    """Tell whether a tag may follow another; beyond both ends of a sentence is O.

    IOB2 (BIO): B-X begins a span. IOB1 (Ramshaw and Marcus 1995; CoNLL-2003): I-X does, B-X only where one of the same
    kind ends. IOBES: B-X begins a span of several words, E-X ends it, S-X is one of a single word.
    """
    (one, kind), (two, other) = parted(before), parted(after)
    if scheme == "IOBES":
        inside = one in "BI"
        return inside == (two in "IE") and (not inside or kind == other)
    follows = one in "BI" and kind == other
    return two in "OBI" and (follows or two != {"IOB1": "B", "IOB2": "I"}[scheme])


def odd_step(scheme: str, tags: Sequence[str]) -> str:
    """Say where the tags of a sentence first break a scheme, "" if nowhere."""
    for k, (before, after) in enumerate(pairwise(("O", *tags, "O"))):
        if not allows(scheme, before, after):
            return f"{before} last" if k == len(tags) else f"{after} after {before} at word {k + 1}" if k else f"{after} first"
    return ""


def nearest(sentences: Iterable[Sequence[str]]) -> tuple[str, float]:
    """Find the scheme that sentences of tags break least, and in what share of the steps that begin or end something.

    ("none", 0) where tags write no spans.
    """
    counts = Counter(pair for tags in sentences for pair in pairwise(("O", *tags, "O")))
    counts = Counter({pair: n for pair, n in counts.items() if parted(pair[0]) != parted(pair[1])})
    if not counts:
        return "none", 0.0
    broken = {scheme: sum(n for pair, n in counts.items() if not allows(scheme, *pair)) for scheme in SCHEMES}
    best = min(SCHEMES, key=broken.__getitem__)
    return best, broken[best] / counts.total()


def forbid(weights: Weights, tags: Sequence[str], scheme: str) -> Weights:
    """Add -1e4 to what a scheme does not allow: from tag to tag, first, and last."""
    wrong_CC = np.array([[not allows(scheme, one, other) for other in tags] for one in tags])
    first_C = np.array([not allows(scheme, "O", tag) for tag in tags])
    last_C = np.array([not allows(scheme, tag, "O") for tag in tags])
    steps_CC, start_C, end_C = weights
    return steps_CC + FORBIDDEN * wrong_CC, start_C + FORBIDDEN * first_C, end_C + FORBIDDEN * last_C
