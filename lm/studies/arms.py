"""Arms from a config: every combination of fields (grid), fields that change together (zip), named changes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lm.config import Config
from lm.errors import UserError, check
from lm.fields import as_text, override
from lm.studies.study import Arm

Axis = Sequence[Mapping[str, Any]]  # the changes of each point: {dotted path: value}


def axis(path: str, values: Sequence[Any]) -> Axis:
    """One field with its values."""
    check(len(values) > 0, f"{path}: give at least one value")
    return [{path: value} for value in values]


def together(fields: Mapping[str, Sequence[Any]]) -> Axis:
    """Fields that change together: {dotted path: values}."""
    lengths = {len(values) for values in fields.values()}
    check(len(lengths) == 1, f"fields that change together have as many values each: {', '.join(fields)}")
    return [dict(zip(fields, point, strict=True)) for point in zip(*fields.values(), strict=True)]


def grid(config: Config, fields: Mapping[str, Sequence[Any]], *axes: Axis) -> tuple[Arm, ...]:
    """Return an arm for each combination of the values of `fields` and the points of more axes.

    Values are Python values or, for a field that is an object (`objective.model`), such an object.
    """
    points = [axis(path, values) for path, values in fields.items()] + list(axes)
    arms = []
    for combination in itertools.product(*points):
        changes: dict[str, Any] = {}
        for point in combination:
            twice = changes.keys() & point.keys()
            check(not twice, f"'{next(iter(twice), '')}' is on two axes of the grid")
            changes |= point
        arms.append(Arm(name=name_of(changes), stages=(changed(config, changes),)))
    return tuple(arms)


def named(config: Config, arms: Mapping[str, Mapping[str, Any]]) -> tuple[Arm, ...]:
    """Return an arm for each name, with its changes of the config: {"rotary": {"objective.model.positions": "rotary"}}."""
    return tuple(Arm(name=name, stages=(changed(config, changes),)) for name, changes in arms.items())


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Replace fields at dotted paths: plain values with the checks of the command line, dataclasses as they are."""
    # One by one, as fields below a new object exist only then; plain values that follow each other together.
    plain: list[tuple[str, str]] = []
    for path, value in changes.items():
        if dataclasses.is_dataclass(value):
            config, plain = placed(override(config, plain), path.split("."), value, path), []
        else:
            plain.append((path, as_text(value)))
    return override(config, plain)


def placed(config: Any, names: Sequence[str], value: Any, path: str) -> Any:
    """Replace one dataclass inside another."""
    name = names[0]
    if name not in {field.name for field in dataclasses.fields(config)}:
        raise UserError(f"no field '{path}': {type(config).__name__} has no '{name}'")
    inner = placed(getattr(config, name), names[1:], value, path) if len(names) > 1 else value
    return dataclasses.replace(config, **{name: inner})


def name_of(changes: Mapping[str, Any]) -> str:
    """Name an arm by its changes: "lr=0.001 positions=rotary", with as much of a path as tells fields apart."""
    parts = []
    for path, value in changes.items():
        last = path.rpartition(".")[2]
        short = last if sum(other.rpartition(".")[2] == last for other in changes) == 1 else path
        text = type(value).__name__ if dataclasses.is_dataclass(value) else as_text(value)
        parts.append(f"{short}={text.replace(',', ';').replace('/', '_')}")
    return " ".join(parts) or "base"


def parse_axes(text: str) -> dict[str, list[str]]:
    """Parse 'a.b=v1,v2 c=d,e' of the command line; values with commas of their own are separated by ';'."""
    found: dict[str, list[str]] = {}
    for item in text.split():
        path, equals, values = item.partition("=")
        check(bool(equals) and bool(path) and bool(values), f"--grid: '{item}' is not field=value,value")
        check(path not in found, f"--grid: '{path}' stands there twice")
        found[path] = [value for value in values.split(";" if ";" in values else ",") if value]
    return found
