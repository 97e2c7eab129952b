"""Modules of a user's own: what `--modules` names, what a config file imports, and entry points of installed packages.

A module registers itself by being imported: it defines objectives or sources, or adds entries to tables such as
`lm.decode.strategies.STRATEGIES` and `lm.evaluation.registry.TASKS`. A saved config may name classes of these modules and
of `lm` alone, so that a config from a stranger imports nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points

from lm.errors import UserError, one_line

GROUP = "lm.modules"  # of entry points: [project.entry-points."lm.modules"] NAME = "package.module"
_known: set[str] = set()


def import_modules(names: Sequence[str]) -> None:
    """Import a user's modules; raises UserError for one that is not there or fails."""
    names = [name for name in names if name]
    if names and "" not in sys.path:
        sys.path.insert(0, "")  # the working folder, where an installed command does not look by itself
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise UserError(f"--modules={name}: no module '{error.name}' here or among installed packages") from None
            raise UserError(f"--modules={name}: it imports '{error.name}', which is not installed") from error
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"--modules={name}: {type(error).__name__}: {one_line(str(error))}") from error
        _known.add(name)


def from_command_line(argv: Sequence[str]) -> None:
    """Import the modules of `--modules=a,b.c` before a command defines flags that depend on them."""
    for item, after in zip(argv, [*argv[1:], ""]):
        name, equals, value = item.lstrip("-").partition("=")
        if item.startswith("-") and name == "modules":
            import_modules((value if equals else after).split(","))


def register(config: object) -> None:
    """Remember the modules that a config's classes are from: its file is the user's own."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        _known.add(type(config).__module__)
        for field in dataclasses.fields(config):
            register(getattr(config, field.name))
    elif isinstance(config, tuple | Mapping):
        for one in config.values() if isinstance(config, Mapping) else config:
            register(one)


def own_modules() -> list[str]:
    """List the registered modules outside of lm, for the --modules of a command that this process starts."""
    return sorted(name for name in _known if name.partition(".")[0] not in ("lm", "builtins"))


def is_known(module: str) -> bool:
    """Return whether a saved config may name classes of this module: it, or a package around it, was registered."""
    if any(module == name or module.startswith(f"{name}.") for name in _known):
        return True
    for point in entry_points(group=GROUP):
        if module == point.value or module.startswith(f"{point.value}."):
            import_modules([point.value])
            return True
    return False
