"""Losses that a network adds to whatever objective trains it, such as the balance of experts.

A training step opens `collected` around its objective; elsewhere (evaluation, decoding) nothing is collected.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

Extra = tuple[str, float, jax.Array]  # name, coefficient, value
_open: ContextVar[list[Extra] | None] = ContextVar("extra losses", default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[Extra]]:
    """Yield the list, which grows, of the losses that networks add within."""
    found: list[Extra] = []
    token = _open.set(found)
    try:
        yield found
    finally:
        _open.reset(token)


def add(name: str, coefficient: float, value: jax.Array) -> None:
    """Add coefficient x value to the loss that is being traced."""
    if (found := _open.get()) is not None:
        found.append((name, coefficient, value))


def averaged(found: list[Extra]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return (sum, count) of each name: an encoder and a decoder add under one."""
    values = {name: [value for other, _, value in found if other == name] for name, _, _ in found}
    return {name: (sum(each[1:], each[0]), jnp.asarray(float(len(each)))) for name, each in values.items()}
