"""The feed-forward layer and the table of its activations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.models.layers import Linear, dropout


def relu2(x: jax.Array) -> jax.Array:
    """Squared ReLU (So et al. 2021, Primer)."""
    return jnp.square(nn.relu(x))


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, by the error function."""
    return nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation: GPT-2's `gelu_new`."""
    return nn.gelu(x, approximate=True)


# name -> (activation, gated); gated forms multiply with a second projection (Shazeer 2020). A new entry is a new choice.
ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], bool]] = {
    "gelu": (gelu, False),
    "gelu_tanh": (gelu_tanh, False),
    "relu": (nn.relu, False),
    "relu2": (relu2, False),
    "silu": (nn.silu, False),
    "swiglu": (nn.silu, True),
    "geglu": (gelu, True),
    "geglu_tanh": (gelu_tanh, True),
    "reglu": (nn.relu, True),
}


class FeedForward(nn.Module):
    """Two projections, width -> mlp -> width, with an activation between; gated ones have a third, "gate".

    `config`: a `Transformer` or an `XLNet`.
    """

    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        c = self.config
        function, gated = ACTIVATIONS[c.activation]
        shape, axes = (c.width, c.mlp_size), ("embed", "mlp")
        into = {"bias": c.bias, "lora": c.lora, "quantize": c.quantize, **c.linear(c.width)}
        out = {"bias": c.bias, "lora": c.lora, "quantize": c.quantize, **c.linear(c.mlp_size, out=True)}
        x_BTF = Linear(shape, axes, name="up", **into)(x_BTD, keys_B)
        x_BTF = function(Linear(shape, axes, name="gate", **into)(x_BTD, keys_B)) * x_BTF if gated else function(x_BTF)
        x_BTF = dropout(x_BTF, c.mlp_dropout, keys_B, 3)
        return Linear(shape[::-1], axes[::-1], name="down", **out)(x_BTF, keys_B)
