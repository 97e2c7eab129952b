"""Relative positions of Transformer-XL and XLNet: sinusoids of distances, and the shift that aligns them with keys."""

import jax
import jax.numpy as jnp

from lm.models.positions import sinusoids


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
