"""Low-rank adaptation of matrices (Hu et al. 2021): W + scale A B, where only A and B are trained."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError, check_range


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Factors beside the matrices of a stack; `rank` 0: none.

    What they add counts `alpha` / `rank` (`alpha` 0: as rank). `targets`: patterns (regular expressions, searched) of the
    matrices' paths, such as `stack/layers/attention/query` or `stack/layers/mlp/up`. `dropout` is on what the factors
    read. A is drawn uniform within 1 / sqrt(inputs), as the released code does, B is 0: the first step is the plain
    model's.
    """

    rank: int = 0
    alpha: float = 0.0
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0

    def __post_init__(self):
        check_range(self, 0, float("inf"), "rank", "alpha")
        check_range(self, 0, 1, "dropout")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"lora.targets: '{pattern}' is no regular expression: {error}") from error

    @property
    def scale(self) -> float:
        return (self.alpha or self.rank) / self.rank

    def hits(self, path: tuple[str, ...]) -> bool:
        """Tell whether the matrix at a path gets factors."""
        return self.rank > 0 and any(re.search(pattern, "/".join(path)) for pattern in self.targets)


def bound(inputs: int):
    """Initialiser of A: uniform within 1 / sqrt(inputs), which is Kaiming's with a = sqrt(5)."""
    limit = 1 / math.sqrt(inputs)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def product(kernel: Any, a: Any, b: Any, scale: float) -> np.ndarray:
    """Compute kernel + scale (A B) on the host, float32, in this order of operations; layers are in front."""
    kernel, a, b = (np.asarray(x, np.float32) for x in (kernel, a, b))
    lead = kernel.ndim - (a.ndim - 1) - (b.ndim - 1)  # minus 1 when an axis of layers is counted twice
    layers = kernel.shape[0] if lead < 0 else 1
    rank = b.shape[1] if lead < 0 else b.shape[0]
    added = np.stack([x @ y for x, y in zip(a.reshape(layers, -1, rank), b.reshape(layers, rank, -1))])
    return kernel + np.float32(scale) * added.reshape(kernel.shape)


def merge(lora: Lora, params: Any) -> Any:
    """Give plain parameters: each kernel plus what its factors add, the factors gone; the rest is as it was."""
    if not isinstance(params, dict):
        return params
    found = {name: merge(lora, one) for name, one in params.items()}
    if "lora_a" in found:
        a, b = found.pop("lora_a"), found.pop("lora_b")
        found["kernel"] = jnp.asarray(product(found["kernel"], a, b, lora.scale))
    return found


def stacks(model: Any) -> list[str]:
    """Name the fields of a model that are stacks with a `lora` of their own; "" is the model itself."""
    return [""] if hasattr(model, "lora") else [name for name in ("encoder", "decoder") if hasattr(model, name)]


def merged(model: Any, params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give the plain model and parameters that compute what a model with LoRA factors does; others stay as they are."""
    for name in stacks(model):
        part = getattr(model, name) if name else model
        if not part.lora.rank:
            continue
        params = {**params, name: merge(part.lora, params[name])} if name else merge(part.lora, params)
        plain = dataclasses.replace(part, lora=Lora())
        model = dataclasses.replace(model, **{name: plain}) if name else plain
    return model, params


def unmet(model: Any, paths: list[str]) -> list[str]:
    """List the targets of a model that hit none of these paths of parameters."""
    found = []
    for name in stacks(model):
        lora = (getattr(model, name) if name else model).lora
        own = [path.removesuffix("/lora_a") for path in paths if path.endswith("/lora_a")]
        own = [path for path in own if not name or name in path.split("/")]
        found += [t for t in lora.targets if lora.rank and not any(re.search(t, path) for path in own)]
    return found
