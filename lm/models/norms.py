"""Normalisation with float32 statistics: LayerNorm, RMSNorm, and the table of their kinds."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.models.layers import named
from lm.sharding import rows_cut


@dataclass(frozen=True, kw_only=True)
class NormKind:
    """`centred`: subtract the mean; `shift`: add a bias where the config has biases; `offset`: scale by 1 + parameter."""

    centred: bool = False
    shift: bool = False
    offset: bool = False


# A new entry is a new choice of `Transformer.norm`.
NORMS = {
    "layer": NormKind(centred=True, shift=True),  # Ba et al. 2016
    "rms": NormKind(),  # Zhang & Sennrich 2019
    "rms_one": NormKind(offset=True),  # Gemma team 2024: weight decay and an init of 0 pull towards plain normalisation
}


class Norm(nn.Module):
    """Normalise the last axis, then scale (and shift) it; `kind` is a name in NORMS."""

    kind: str = "layer"
    eps: float = 1e-5
    bias: bool = True
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kind, shape = NORMS[self.kind], (x.shape[-1],)
        init = nn.initializers.zeros if kind.offset else nn.initializers.ones
        scale = self.param("scale", named(init, (self.axis,)), shape)
        scale = 1 + scale if kind.offset else scale
        shift = None
        if self.bias and kind.shift:
            shift = self.param("bias", named(nn.initializers.zeros, (self.axis,)), shape)
        return normalise(x, scale, shift, kind.centred, self.eps)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(x: jax.Array, scale: jax.Array, shift: jax.Array | None, centred: bool, eps: float) -> jax.Array:
    """Scale x to unit variance (or mean square, not `centred`) along its last axis, in float32; the result has x's dtype."""
    return forward(x, scale, shift, centred, eps)[0]


def statistics(x: jax.Array, centred: bool, eps: float) -> tuple[jax.Array, jax.Array]:
    """Return x normalised and 1 / its standard deviation (or root mean square), both float32."""
    x = x.astype(jnp.float32)
    if centred:
        # Before squaring: mean(x^2) - mean(x)^2 cancels where the mean is large.
        x = x - x.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
    return x * factor, factor


def forward(
    x: jax.Array, scale: jax.Array, shift: jax.Array | None, centred: bool, eps: float
) -> tuple[jax.Array, tuple[Any, ...]]:
    y = statistics(x, centred, eps)[0] * scale
    y = y if shift is None else y + shift
    return y.astype(x.dtype), (x, scale, shift)


def backward(centred: bool, eps: float, saved: tuple[Any, ...], g: jax.Array) -> tuple[Any, ...]:
    """Recompute the statistics, which is cheaper than keeping them, and return the gradients of x, scale and shift."""
    x, scale, shift = saved
    normal, factor = statistics(x, centred, eps)
    g = g.astype(jnp.float32)
    # The result does not change with the length of x (nor, centred, with its mean): these parts leave the gradient.
    inner = g * scale
    d_x = inner - normal * (inner * normal).mean(-1, keepdims=True)
    if centred:
        d_x = d_x - inner.mean(-1, keepdims=True)

    def total(y: jax.Array) -> jax.Array:
        # Rows and columns that are both cut by the mesh cannot be merged without gathering them.
        if rows_cut():
            return y.sum(tuple(range(y.ndim - 1)))
        # Over tokens, by a matrix product: on a CPU ten times faster than a reduction.
        return (jnp.ones((1, y.size // y.shape[-1]), jnp.float32) @ y.reshape(-1, y.shape[-1]))[0]

    return (d_x * factor).astype(x.dtype), total(g * normal), None if shift is None else total(g)


normalise.defvjp(forward, backward)
