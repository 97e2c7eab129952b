"""List the objectives: papers and their systems, configs, keys of a batch; or begin one of your own.

    python -m lm.objectives
    python -m lm.objectives --new=my_idea     writes my_idea.py, my_idea_config.py and test_my_idea.py here
"""

import contextlib
import importlib.util
import inspect
import keyword
import pkgutil
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path

from absl import flags

import lm.objectives
from lm.config import load
from lm.console import table
from lm.errors import UserError, check
from lm.flags import run
from lm.objectives.base import Objective

NEW = flags.DEFINE_string("new", None, "write a skeleton of this name: objective, config and tests, in the working folder")


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


def write_skeleton(name: str, folder: Path = Path()) -> list[Path]:
    """Write an objective that trains, its config and its tests; raises UserError where one of the files exists."""
    valid = name.isidentifier() and name == name.lower() and not keyword.iskeyword(name)
    check(valid, f"--new={name}: a module's name is lower-case letters, digits and _, as in my_idea")
    taken = name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None
    check(not taken, f"--new={name}: a module of this name exists already; take another name")
    files = {"objective": folder / f"{name}.py", "config": folder / f"{name}_config.py", "test": folder / f"test_{name}.py"}
    for path in files.values():
        check(not path.exists(), f"{path} exists already; move it, or take another name")
    words = {"NAME": name, "CLASS": "".join(part.capitalize() for part in name.split("_"))}
    for kind, path in files.items():
        text = (Path(__file__).parent / "skeleton" / f"{kind}.txt").read_text(encoding="utf-8")
        path.write_text(re.sub(r"NAME|CLASS", lambda match: words[match[0]], text), encoding="utf-8")
    return list(files.values())


def main(overrides: list[tuple[str, str]]) -> None:
    """Print the table, with the command that shows samples of each objective; or write a skeleton."""
    check(not overrides, "lm.objectives takes no --config.* flags")
    if NEW.value is not None:
        own, config, test = write_skeleton(NEW.value)
        print(f"{own}: the objective\n{config}: its config: python -m lm.main --config={config} --dry_run")
        print(f"{test}: its tests: python -m pytest {test}")
        return
    known = configs()
    for objective in objectives():
        module, first = objective.__module__, Path(default(objective)).stem
        others = [name for name in known.get(objective, []) if name != first]
        names = ", ".join([f"configs/{first}.py", *others])
        rows = [("systems", objective.paper), ("configs", names), ("a batch holds", objective.holds)]
        print(f"{objective.__name__}  python -m {module} [--dry_run]")
        print(table(rows, ("", "")), end="\n\n")


if __name__ == "__main__":
    run(main)
