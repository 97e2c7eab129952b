"""Low-rank factors added to their matrices: the plain model that computes the same."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.models.lora import Lora, stacks


def product(kernel: Any, a: Any, b: Any, scale: float) -> np.ndarray:
    """Compute kernel + scale (A B) on the host, float32, in this order of operations; an axis of layers comes first."""
    kernel, a, b = (np.asarray(x, np.float32) for x in (kernel, a, b))
    # The parameters of stacked layers have an axis L in front, counted in both factors.
    lead = kernel.ndim - (a.ndim - 1) - (b.ndim - 1)  # minus 1 when an axis of layers is counted twice
    layers = kernel.shape[0] if lead < 0 else 1
    rank = b.shape[1] if lead < 0 else b.shape[0]
    added = np.stack([x @ y for x, y in zip(a.reshape(layers, -1, rank), b.reshape(layers, rank, -1))])
    return kernel + np.float32(scale) * added.reshape(kernel.shape)


def merge(lora: Lora, params: Any) -> Any:
    """Return plain parameters: the product of the factors added to each kernel, the rest unchanged."""
    if not isinstance(params, dict):
        return params
    plain = {name: merge(lora, value) for name, value in params.items()}
    if "lora_a" in plain:
        a, b = plain.pop("lora_a"), plain.pop("lora_b")
        plain["kernel"] = jnp.asarray(product(plain["kernel"], a, b, lora.scale))
    return plain


def merged(model: Any, params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the equivalent model without LoRA factors and its parameters."""
    for name in stacks(model):
        part = getattr(model, name) if name else model
        if not part.lora.rank:
            continue
        params = {**params, name: merge(part.lora, params[name])} if name else merge(part.lora, params)
        plain = dataclasses.replace(part, lora=Lora())
        model = dataclasses.replace(model, **{name: plain}) if name else plain
    return model, params
