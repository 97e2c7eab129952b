"""Bottleneck adapters (Houlsby et al. 2019): a small network on what a sub-layer gives, at first nearly nothing."""

from dataclasses import dataclass
from typing import Literal

import jax
from flax import linen as nn

from lm.errors import check_choices, check_range
from lm.models.layers import Linear

ACTIVATIONS = {"gelu": nn.gelu, "relu": nn.relu}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Width of the bottleneck, 0: none; `after` which sub-layers of a layer.

    "both" attention and feed-forward (Houlsby et al. 2019), or only the "mlp", half the parameters: what Pfeiffer et al.
    2021 found enough, here at Houlsby's place, before the residual sum and its norm. Attention to a source has none.
    """

    size: int = 0
    after: Literal["both", "mlp"] = "both"
    activation: Literal["gelu", "relu"] = "gelu"

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "size")

    def follows(self, part: str) -> bool:
        """Tell whether an adapter follows the "attention" or the "mlp"."""
        return self.size > 0 and (part == "mlp" or self.after == "both")


class Bottleneck(nn.Module):
    """y + up(activation(down(y))), both matrices drawn with 1e-3, as in the released code."""

    width: int
    config: Adapter

    @nn.compact
    def __call__(self, y_BTD: jax.Array) -> jax.Array:
        init, size = {"std": 1e-3, "truncate": True}, self.config.size
        y_BTA = Linear((self.width, size), ("embed", None), name="down", **init)(y_BTD)
        y_BTA = ACTIVATIONS[self.config.activation](y_BTA)
        return y_BTD + Linear((size, self.width), (None, "embed"), name="up", **init)(y_BTA)
