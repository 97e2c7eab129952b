"""Typed values of dataclass fields: parsing from text, type checks for JSON, overrides at dotted paths."""

import ast
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lm.errors import UserError, check, unknown

UNIONS = (typing.Union, types.UnionType)


def derived() -> Any:
    """Declare a field that `Objective.resolve` and `study` fill in: neither saved, overridden, shown nor compared."""
    return dataclasses.field(default=None, repr=False, compare=False, metadata={"derived": True})


def chosen(config: Any) -> list[dataclasses.Field]:
    """List the fields of a dataclass, or of a value of one, that a config sets."""
    return [field for field in dataclasses.fields(config) if field.init and "derived" not in field.metadata]


def parse(text: str, kind: Any, name: str) -> Any:
    """Parse one value of the annotated type `kind`; `name` is for the error."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        if text.lower() == "none" and type(None) in args:
            return None
        # In the order of the annotation; the last option's error is the one to show.
        options = [a for a in args if a is not type(None)]
        for option in options[:-1]:
            try:
                return parse(text, option, name)
            except UserError:
                continue
        return parse(text, options[-1], name)
    if origin is Literal:
        for option in args:
            if str(option) == text:
                return option
        raise unknown(f"value of {name}", text, [str(a) for a in args])
    if origin is tuple:
        # Both "0.9,0.95" and Python's "(0.9, 0.95)": shells make parentheses awkward.
        items = [t for t in text.strip("()[] ").split(",") if t.strip()]
        kinds = [args[0]] * len(items) if args[-1] is Ellipsis else args
        check(len(kinds) == len(items), f"{name}: expected {len(kinds)} values joined by commas, got '{text}'")
        return tuple(parse(t.strip().strip("'\""), k, name) for t, k in zip(items, kinds, strict=True))
    if kind is bool:
        table = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        check(text.lower() in table, f"{name}: '{text}' is not true or false")
        return table[text.lower()]
    if kind in (int, float):
        return number(text, kind, name)
    if kind is str:
        return text
    raise UserError(f"{name} cannot be set from the command line; set it in the config file")


def number(text: str, kind: type, name: str) -> float | int:
    """Parse a number; 1e3 and 2_000 are whole numbers too."""
    try:
        value = ast.literal_eval(text)
        # literal_eval, not int(): it reads 1e3 and 2_000, and no names such as nan.
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if fits and (kind is float or value == kind(value)):
            return kind(value)
    except (ValueError, SyntaxError, OverflowError):
        pass
    raise UserError(f"{name}: '{text}' is not {'a whole number' if kind is int else 'a number'}")


def hints(cls: type) -> dict[str, Any]:
    """Map a dataclass's field names to their annotated types."""
    types = typing.get_type_hints(cls)
    return {f.name: types[f.name] for f in chosen(cls)}


def override(config: Any, pairs: Sequence[tuple[str, str]], seen: str = "", whole: Any = None) -> Any:
    """Replace fields at dotted paths by parsed values, all at once: checks between fields see the final values.

    Raises UserError for an unknown name, with suggestions from `whole`, the config that `config` is a part of.
    """
    valid = hints(type(config))
    changes: dict[str, Any] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, text in pairs:
        name, _, rest = path.partition(".")
        where = f"{seen}{name}"
        if name not in valid:
            from lm.suggestions import no_field  # names of other frameworks: for a mistake alone

            raise no_field(whole or config, f"{seen}{path}")
        value = getattr(config, name)
        # Overrides of one nested group are collected, so that its checks run once, on all new values.
        if rest:
            check(dataclasses.is_dataclass(value), f"{where} has no fields of its own (it is {value!r})")
            groups.setdefault(name, []).append((rest, text))
        elif dataclasses.is_dataclass(value):
            raise UserError(f"{where} is a group of fields; set one of them: {', '.join(hints(type(value)))}")
        else:
            changes[name] = parse(text, valid[name], where)
    changes |= {n: override(getattr(config, n), inner, f"{seen}{n}.", whole or config) for n, inner in groups.items()}
    return dataclasses.replace(config, **changes)


def as_text(value: object) -> str:
    """Write a value as the command line takes it: the inverse of `parse`."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def arguments(function: Callable, arg: str, given: Sequence[str] = ()) -> dict[str, Any]:
    """Parse `key=value,key=value` into keyword arguments of a config function, by its annotations; `given`: set elsewhere."""
    parameters = inspect.signature(function, eval_str=True).parameters
    valid = {n: p.annotation for n, p in parameters.items()}
    result, key = {}, None
    # Split at commas first, and join again where a part is not key=value: values may hold commas, keys cannot.
    for item in filter(None, arg.split(",")):
        name, equals, text = item.partition("=")
        if not equals and key:  # a comma inside a value, as in text=a.txt,b.txt
            text, name = f"{result[key]},{item}", key
        elif not equals:
            raise UserError(f"config argument '{item}' is not key=value; valid keys: {', '.join(valid) or 'none'}")
        if name not in valid:
            raise unknown("config argument", name, list(valid))
        key, result[name] = name, text
    for name, parameter in parameters.items():
        known = parameter.default is not parameter.empty or name in result or name in given
        check(known, f"this config needs {name}=VALUE after its colon")
    return {name: parse(text, valid[name], name) for name, text in result.items()}


def has_type(value: Any, kind: Any) -> bool:
    """Return whether a value is of an annotated type; an int is a float, too, but a bool is no number."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        return any(has_type(value, option) for option in args)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return len(kinds) == len(value) and all(map(has_type, value, kinds))
    # People write 1 for 1.0.
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    # Any and protocols cannot be checked here; the code that uses the value raises.
    return kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or isinstance(value, kind)


def described(kind: Any) -> str:
    """Format an annotated type for an error."""
    if typing.get_origin(kind) in UNIONS:
        return " or ".join(described(option) for option in typing.get_args(kind))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    return names.get(kind, getattr(kind, "__name__", str(kind))) if isinstance(kind, type) else str(kind).replace("typing.", "")
