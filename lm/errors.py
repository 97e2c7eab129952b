"""The one exception that means "the user can fix this", and the checks that raise it."""

import difflib
import typing
from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """A user's mistake, worded as one line that names the thing and the way out.

    Entry points print it without a traceback and exit with status 2 (`lm.command.run`); a traceback is for our own bugs.
    """


def check(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


def unknown(kind: str, name: str, valid: Sequence[str]) -> UserError:
    """Word the error for a name that is not among the valid ones, with the nearest one."""
    near = difflib.get_close_matches(str(name), valid, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {kind} '{name}': {hint}valid: {', '.join(valid)}")


def check_choices(instance: Any) -> None:
    """Raise UserError where a dataclass's field of a Literal type holds another value."""
    for name, kind in typing.get_type_hints(type(instance)).items():
        choices = typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal and getattr(instance, name) not in choices:
            raise unknown(name, getattr(instance, name), [str(c) for c in choices])


def check_range(instance: Any, low: float, high: float, *names: str) -> None:
    """Raise UserError unless low <= field < high for each named field."""
    for name in names:
        value = getattr(instance, name)
        above = f" and below {high:g}" if high < float("inf") else ""
        check(low <= value < high, f"{name}={value} must be at least {low:g}{above}")
