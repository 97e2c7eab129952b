"""Losses that a network adds to whatever objective trains it, such as the balance of experts.

A network calls `add` while a training step is traced; the step opens `collected` around the objective. Elsewhere (evaluation,
decoding) nothing is collected, so that objectives need not know of such losses.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_open: ContextVar[list[tuple[str, float, jax.Array]] | None] = ContextVar("extra losses", default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[tuple[str, float, jax.Array]]]:
    """Yield the list, which grows, of the losses that networks add within: (name, coefficient, value)."""
    found: list[tuple[str, float, jax.Array]] = []
    token = _open.set(found)
    try:
        yield found
    finally:
        _open.reset(token)


def add(name: str, coefficient: float, value: jax.Array) -> None:
    """Add coefficient x value to the loss that is being traced."""
    if (found := _open.get()) is not None:
        found.append((name, coefficient, value))
