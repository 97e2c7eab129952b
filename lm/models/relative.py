"""Relative positions of Transformer-XL and XLNet: sinusoids of distances, and the shift that aligns them with keys."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.models.attend import SHORT
from lm.models.blocks import join, split
from lm.models.positions import sinusoids
from lm.models.products import multiply
from lm.sharding import pieces

PIECE = 256  # most queries of a piece of a long row


def distances(first: int, last: int, width: int, clamp: int = 0) -> jax.Array:
    """Embed the distances first, first - 1, ..., last (query minus key): (R, D), halves [sin, cos].

    `clamp` > 0 clips them (Dai et al. 2019, released code).
    """
    steps = jnp.arange(first, last - 1, -1)
    if clamp:
        steps = jnp.clip(steps, -clamp, clamp)
    return sinusoids(steps[None], width)[0]


def shift(scores: jax.Array, keys: int) -> jax.Array:
    """Align (..., T, R) scores by distance, the same list of distances in every row, with keys: (..., T, keys).

    The column of key 0 is one earlier in each row than in the row before; dropping one row's worth of entries between
    two reshapes does that without a gather (Dai et al. 2019, appendix B). With R = keys (the causal form, distances
    from keys - 1 to 0) entries past the diagonal come from other rows and must be masked; with R >= keys + T - 1
    (XLNet, distances from keys down to -T + 1) all entries are valid.
    """
    *lead, length, width = scores.shape
    if width == keys:
        scores = jnp.concatenate([jnp.zeros((*lead, length, 1), scores.dtype), scores], -1)
        width += 1
    shifted = scores.reshape(*lead, width, length)[..., 1:, :].reshape(*lead, length, width - 1)
    return shifted[..., :keys]


def relative_scores(
    q_BNTH: jax.Array, r_BNRH: jax.Array, places_BT: jax.Array | None, numbers_T: jax.Array, length: int, keys: int
) -> jax.Array:
    """Multiply queries with the projected distances to all keys (XLNet): float32 (B, N, T, S).

    Distances are in the order M + T, ..., -T + 1, so that a query at position t of the row has its key 0 in column T - t.
    `places_BT`: positions of the queries; None: `numbers_T`, neighbours. B = 1 in `r_BNRH`: the same for all rows.
    """
    queries = q_BNTH.shape[2]
    if places_BT is None and pieces("length") != (1,):
        # The shift moves entries between rows, which may be on other devices.
        places_BT = jnp.broadcast_to(numbers_T, (q_BNTH.shape[0], queries))
    if places_BT is None:  # neighbours: only the columns that one of them needs
        r_BNRH = jax.lax.dynamic_slice_in_dim(r_BNRH, length - queries - numbers_T[0], keys + queries, 2)
    scores_BNTR = by_products(q_BNTH, r_BNRH)
    if places_BT is None:
        return shift(scores_BNTR, keys)

    def one(scores_NR: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(scores_NR, start, keys, 1)

    return jax.vmap(jax.vmap(one, (1, 0), 1))(scores_BNTR, length - places_BT)


def by_products(q_BNTH: jax.Array, r_BNRH: jax.Array) -> jax.Array:
    """Multiply queries with projected distances: float32 (B, N, T, R); B = 1 in `r_BNRH`: the same for all rows."""
    if r_BNRH.shape[0] == q_BNTH.shape[0]:
        return multiply("bnth,bnrh->bntr", q_BNTH, r_BNRH)
    return multiply("bnth,nrh->bntr", q_BNTH, r_BNRH[0])


def in_pieces(function: Callable[..., jax.Array], queries: tuple, longest: int) -> jax.Array:
    """Call a function of arrays along queries piece by piece and recompute it in the backward pass, where rows are long.

    For scores that depend on more than a query and a key (relative attention): nothing of size queries x keys is kept.
    Arrays have their queries on axis 2, or the last of fewer axes; None stays None. The result is (B, N, T, H).
    """
    length = jax.tree.leaves(queries)[0].shape[2]
    size = next(n for n in range(min(PIECE, length), 0, -1) if length % n == 0)
    if longest <= SHORT or pieces("length") != (1,):
        return function(*queries)

    count = length // size
    return join(jax.lax.map(jax.checkpoint(lambda xs: function(*xs), prevent_cse=False), split(queries, count)))
