"""The feed-forward layer and its activations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.models.layers import Linear


def relu2(x: jax.Array) -> jax.Array:
    """Square of relu (So et al. 2021, Primer)."""
    return jnp.square(nn.relu(x))


def gelu(x: jax.Array) -> jax.Array:
    """Exact gelu, with the error function."""
    return nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Gelu by its tanh approximation: GPT-2's `gelu_new`."""
    return nn.gelu(x, approximate=True)


# name -> (activation, gated); gated forms multiply a second projection in (Shazeer 2020).
ACTIVATIONS: dict[str, tuple[Callable, bool]] = {
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
    """Width -> mlp -> width with an activation between, gated when the activation's name says so."""

    width: int
    mlp: int
    activation: str
    bias: bool
    std: float
    out_std: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        function, gated = ACTIVATIONS[self.activation]
        shape, axes = (self.width, self.mlp), ("embed", "mlp")
        x_BTF = Linear(shape, axes, bias=self.bias, std=self.std, name="up")(x_BTD)
        if gated:
            x_BTF = function(Linear(shape, axes, bias=self.bias, std=self.std, name="gate")(x_BTD)) * x_BTF
        else:
            x_BTF = function(x_BTF)
        return Linear(shape[::-1], axes[::-1], bias=self.bias, std=self.out_std, name="down")(x_BTF)
