"""Placeholders for parameters that a published folder lacks: reading one is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jax

from lm.errors import UserError
from lm.training.parameters import flat, nested


@jax.tree_util.register_static
@dataclass(frozen=True)
class Absent:
    """A parameter without numbers: `name` in the model of `folder`.

    Static in a tree of parameters, so that jax passes over it: commands that do not read the head work, others raise
    UserError, without a table of commands.
    """

    name: str
    folder: str

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # look-ups of protocols, not reads
            raise AttributeError(attribute)
        self.refuse()

    def __jax_array__(self) -> NoReturn:
        self.refuse()

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        self.refuse()

    def refuse(self) -> NoReturn:
        raise UserError(
            f"{self.folder} has no weights for '{self.name}', which is read here: take a folder with that head, train it "
            "(start=FOLDER), or measure one drawn at random with --allow_new_heads"
        )


def without(params: Mapping[str, Any], names: Iterable[str], folder: str) -> dict[str, Any]:
    """Replace the named parameters by placeholders."""
    leaves = flat(params)
    return nested({**leaves, **{name: Absent(name, folder) for name in names if name in leaves}})


def present(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters by path, without placeholders."""
    return {name: x for name, x in flat(params).items() if not isinstance(x, Absent)}
