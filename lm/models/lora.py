"""Low-rank adaptation (Hu et al. 2021): W + scale A B, of which only A and B are trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from lm.errors import UserError, check_range


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank factors of the matrices of a stack; `rank` 0: none.

    Their product is scaled by `alpha` / `rank` (`alpha` 0: as rank). `targets`: regular expressions, searched in the
    paths of matrices, such as `stack/layers/attention/query` or `stack/layers/mlp/up`. `dropout`: of the factors'
    inputs. A is drawn uniformly within 1 / sqrt(inputs), as in the released code, B is 0: training starts at the plain
    model.
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
        """Whether the matrix at a path has factors."""
        return self.rank > 0 and any(re.search(pattern, "/".join(path)) for pattern in self.targets)


def bound(inputs: int) -> Callable[..., jax.Array]:
    """Return the initialiser of A: uniform within 1 / sqrt(inputs), Kaiming's with a = sqrt(5)."""
    limit = 1 / math.sqrt(inputs)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def stacks(model: Any) -> list[str]:
    """Return the fields of a model that are stacks with a `lora` of their own; "": the model itself."""
    return [""] if hasattr(model, "lora") else [name for name in ("encoder", "decoder") if hasattr(model, name)]


def unmet(model: Any, paths: list[str]) -> list[str]:
    """Return the targets of a model that match none of these paths of parameters."""
    missing = []
    for name in stacks(model):
        lora = (getattr(model, name) if name else model).lora
        own = [path.removesuffix("/lora_a") for path in paths if path.endswith("/lora_a")]
        own = [path for path in own if not name or name in path.split("/")]
        missing += [t for t in lora.targets if lora.rank and not any(re.search(t, path) for path in own)]
    return missing
