"""List the objectives: paper, first config, what a batch holds.

    python -m lm.objectives
"""

import importlib
import inspect
import pkgutil
import re
from dataclasses import is_dataclass

import lm.objectives
from lm.console import table
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


def main() -> None:
    """Print the table and how to look at one."""
    for objective in objectives():
        module = objective.__module__
        rows = [("paper", objective.paper), ("config", default(objective)), ("a batch holds", objective.holds)]
        print(f"{objective.__name__}  python -m {module} [--dry_run]")
        print(table(rows, ("", "")), end="\n\n")


if __name__ == "__main__":
    main()
