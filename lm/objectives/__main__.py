"""List the objectives: papers and their systems, configs, keys of a batch; or begin one of your own.

python -m lm.objectives
python -m lm.objectives --new=my_idea     writes my_idea.py, my_idea_config.py and test_my_idea.py here
"""

import importlib.util
import keyword
import re
import sys
from pathlib import Path

from absl import flags

from lm.console import table
from lm.errors import check
from lm.flags import run

NEW = flags.DEFINE_string("new", None, "write a skeleton of this name: objective, config and tests, in the working folder")


def write_skeleton(name: str, folder: Path = Path()) -> list[Path]:
    """Write an objective that trains, its config and its tests; raises UserError where one of the files exists."""
    valid = name.isidentifier() and name == name.lower() and not keyword.iskeyword(name)
    check(valid, f"--new={name}: a module's name is lower-case letters, digits and _, as in my_idea")
    # The new file would hide the module of that name from every command started in this folder.
    taken = name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None
    check(not taken, f"--new={name}: a module of this name exists already; take another name")
    files = {"objective": folder / f"{name}.py", "config": folder / f"{name}_config.py", "test": folder / f"test_{name}.py"}
    # Checked before any is written: an error must not leave half a skeleton.
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
    from lm.objectives.catalogue import configs, default, objectives  # imports jax, which --help does without

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
