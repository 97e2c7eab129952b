"""List the objectives: papers and their systems, configs, what a batch holds.

    python -m lm.objectives
"""

import contextlib
import importlib
import inspect
import pkgutil
import re
from dataclasses import is_dataclass
from pathlib import Path

import lm.objectives
from lm.config import load
from lm.console import table
from lm.errors import UserError
from lm.objectives.base import Objective


def objectives() -> list[type[Objective]]:
    """Find the objectives in the files of this package, by name of the file; what they inherit from is no dataclass."""
    found = []
    for module in sorted(m.name for m in pkgutil.iter_modules(lm.objectives.__path__) if m.name != "__main__"):
        loaded = importlib.import_module(f"lm.objectives.{module}")
        own = [c for c in vars(loaded).values() if inspect.isclass(c) and c.__module__ == loaded.__name__]
        found += [c for c in own if issubclass(c, Objective) and is_dataclass(c)]
    return found


def default(objective: type[Objective]) -> str:
    """Read the config that an objective's entry point takes when none is named."""
    named = re.search(r'main\(default="([^"]+)"\)', inspect.getsource(inspect.getmodule(objective)))
    return named[1] if named else ""


def configs() -> dict[type[Objective], list[str]]:
    """Name the files of `configs/` that train each objective."""
    found: dict[type[Objective], list[str]] = {}
    for path in sorted(Path("configs").glob("[!_]*.py")):
        with contextlib.suppress(UserError, ImportError):  # one that needs an argument
            found.setdefault(type(load(str(path)).objective), []).append(path.stem)
    return found


def main() -> None:
    """Print the table and how to look at one."""
    known = configs()
    for objective in objectives():
        module, first = objective.__module__, Path(default(objective)).stem
        others = [name for name in known.get(objective, []) if name != first]
        names = ", ".join([f"configs/{first}.py", *others])
        rows = [("systems", objective.paper), ("configs", names), ("a batch holds", objective.holds)]
        print(f"{objective.__name__}  python -m {module} [--dry_run]")
        print(table(rows, ("", "")), end="\n\n")


if __name__ == "__main__":
    main()
