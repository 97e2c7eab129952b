"""The objectives of this package, their entry points and their configs."""

import contextlib
import importlib
import inspect
import pkgutil
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path

import lm.objectives
from lm.config import load
from lm.errors import UserError
from lm.objectives.base import Objective


def objectives() -> list[type[Objective]]:
    """Return the objectives defined in this package, sorted by file; their bases are no dataclasses."""
    classes: list[type[Objective]] = []
    for module in sorted(m.name for m in pkgutil.iter_modules(lm.objectives.__path__) if m.name != "__main__"):
        loaded = importlib.import_module(f"lm.objectives.{module}")
        own = [c for c in vars(loaded).values() if inspect.isclass(c) and c.__module__ == loaded.__name__]
        classes += [c for c in own if issubclass(c, Objective) and is_dataclass(c)]
    return classes


def default(objective: type[Objective]) -> str:
    """Return the default config of an objective's entry point."""
    # Objectives name it in their footer only.
    match = re.search(r'main\(default="([^"]+)"\)', inspect.getsource(sys.modules[objective.__module__]))
    return match[1] if match else ""


def configs() -> dict[type[Objective], list[str]]:
    """Return the files of `configs/` that train each objective."""
    names: dict[type[Objective], list[str]] = {}
    for path in sorted(Path("configs").glob("[!_]*.py")):
        with contextlib.suppress(UserError, ImportError):  # configs with required arguments
            names.setdefault(type(load(str(path)).objective), []).append(path.stem)
    return names
