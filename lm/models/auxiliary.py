"""Losses that a network adds to whatever objective trains it, such as the balance of experts.

A network calls `add` while a training step is traced; the step opens `collected` around the objective and adds what it finds.
Outside of it (evaluation, decoding) nothing is collected, so that objectives need not know of such losses.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

Extra = tuple[str, float, jax.Array]  # name, coefficient, value

_open: ContextVar[list[Extra] | None] = ContextVar("extra losses", default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[Extra]]:
    """Collect the losses that networks add within; yield their list, which grows."""
    found: list[Extra] = []
    token = _open.set(found)
    try:
        yield found
    finally:
        _open.reset(token)


def add(name: str, coefficient: float, value: jax.Array) -> None:
    """Add coefficient x value to the loss that is being traced; no effect outside of a training step."""
    found = _open.get()
    if found is not None:
        found.append((name, coefficient, value))
