"""Normalisation with float32 statistics: LayerNorm and RMSNorm."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.models.layers import named


class Norm(nn.Module):
    """Normalise the last axis; scale (and shift, for LayerNorm with bias).

    "layer": Ba et al. 2016; "rms": Zhang & Sennrich 2019, no mean and no shift.
    """

    kind: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5
    bias: bool = True
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", named(nn.initializers.ones, (self.axis,)), shape)
        shift = None
        if self.bias and self.kind == "layer":
            shift = self.param("bias", named(nn.initializers.zeros, (self.axis,)), shape)
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps) * scale
        return (y if shift is None else y + shift).astype(x.dtype)
