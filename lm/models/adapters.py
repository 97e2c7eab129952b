"""Bottleneck adapters (Houlsby et al. 2019): a small residual network after a sub-layer, near the identity at init."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import linen as nn

from lm.errors import check_choices, check_range
from lm.models.layers import Linear

ACTIVATIONS = {"gelu": nn.gelu, "relu": nn.relu}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`size`: width of the bottleneck, 0: none; `after`: the sub-layers with an adapter.

    "both": attention and feed-forward (Houlsby et al. 2019); "mlp": half the parameters, sufficient according to Pfeiffer
    et al. 2021, here in Houlsby's position, before the residual sum and its norm. Cross-attention has none.
    """

    size: int = 0
    after: Literal["both", "mlp"] = "both"
    activation: Literal["gelu", "relu"] = "gelu"  # between the two matrices

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "size")

    def follows(self, part: str) -> bool:
        """Whether an adapter follows the "attention" or the "mlp"."""
        return self.size > 0 and (part == "mlp" or self.after == "both")


class Bottleneck(nn.Module):
    """y + up(activation(down(y))), both matrices with standard deviation 1e-3 at init, as in the released code."""

    width: int
    config: Adapter

    @nn.compact
    def __call__(self, y_BTD: jax.Array) -> jax.Array:
        init: dict[str, Any] = {"std": 1e-3, "truncate": True}
        size = self.config.size
        y_BTA = Linear((self.width, size), ("embed", None), name="down", **init)(y_BTD)
        y_BTA = ACTIVATIONS[self.config.activation](y_BTA)
        return y_BTD + Linear((size, self.width), (None, "embed"), name="up", **init)(y_BTA)
