"""What a family of published models is: its config, its table, and what may be missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lm.convert.rules import Rule
from lm.errors import UserError, check


class Family(Protocol):
    """A module-level object of each file here; `types` are the values of model_type that it reads."""

    types: tuple[str, ...]
    prefix: str  # of the backbone's names in a file with heads; a bare backbone's file lacks it
    ignored: str  # expression: their buffers and duplicates that hold nothing of ours

    def objective(self, settings: Mapping[str, Any]) -> Any:
        """Make the objective that such a model was trained with; raise UserError naming what ours cannot be."""

    def settings(self, objective: Any) -> dict[str, Any]:
        """Write the objective's model as their config.json; raise UserError naming what theirs cannot be."""

    def rules(self, objective: Any) -> list[Rule]:
        """Give the table."""


@dataclass
class Fields:
    """A config.json being read: every architectural field is asked for by name, and odd values are refused by name."""

    settings: Mapping[str, Any]
    where: str = field(default="config.json")

    def get(self, *names: str, default: Any = ...) -> Any:
        """Give the first of the names that is there and not null."""
        for name in names:
            if self.settings.get(name) is not None:
                return self.settings[name]
        if default is ...:
            raise UserError(f"{self.where} has no '{names[0]}'")
        return default

    def one_of(self, name: str, known: Mapping[Any, Any], default: Any = ...) -> Any:
        """Translate a value by a table; refuse what is not in it."""
        value = self.get(name, default=default)
        if value not in known:
            raise UserError(
                f"{self.where}: {name}={value!r} has no counterpart here; known: {', '.join(map(str, known))}"
            )
        return known[value]

    def refuse(self, **plain: Any) -> None:
        """Refuse fields with another value than the plain one, which is also what their absence means."""
        for name, value in plain.items():
            found = self.settings.get(name)
            if found is not None and found != value:
                raise UserError(f"{self.where}: {name}={found!r} has no counterpart here")


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def name_of(activation: str) -> str:
    """Give their name of an activation."""
    found = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}.get(activation)
    check(found is not None, f"their config.json has no name for the activation '{activation}'")
    return found


def canonical(name: str, family: Family, known: set[str]) -> str | None:
    """Give the table's name for a file's; None for what holds nothing of ours.

    Old files say gamma and beta, bare backbones lack the prefix, wrapped models carry one more.
    """
    name = re.sub(r"(?<=norm)\.(gamma|beta)$", lambda m: {"gamma": ".weight", "beta": ".bias"}[m[1]], name, flags=re.I)
    name = name.removeprefix("module.")
    for candidate in (name, family.prefix + name, name.removeprefix("model."), name.removeprefix(family.prefix)):
        if candidate in known:
            return candidate
    return None if re.search(family.ignored, name) else name
