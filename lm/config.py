"""A run is a value: the Config dataclass, config files, JSON both ways.

A config file is a Python file with a function `config(...) -> Config`; the ARG of `--config=FILE.py:ARG` is `key=value`
pairs joined by commas and becomes that function's keyword arguments. `--config.a.b=value` then replaces single fields.
"""

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm.data.corpus.corpus import Data
from lm.errors import UserError, check, check_range, one_line, unknown
from lm.extensions import is_known, register
from lm.fields import arguments, as_text, chosen, described, has_type, hints, override, parse
from lm.strict_json import parse_json
from lm.training.settings import Every, Keep, Mesh, Optimizer, Schedule, Wandb
from lm.training.stopping import EarlyStop

__all__ = ["Config", "Data", "Every", "Keep", "Mesh", "Optimizer", "Schedule", "arguments", "from_json", "load", "override",
           "parse", "read_config", "to_json"]  # fmt: skip
# Rooms of lm whose dataclasses a config is made of.
DESCRIBING = {"config", "objectives", "models", "data", "corruption", "training", "studies"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, whole. `batch` counts sequences per step over all devices; `objective` is the object, not its name."""

    objective: Any = field(metadata={"package": "lm.objectives"})
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    mesh: Mesh = Mesh()
    steps: int = 1000  # updates of the parameters
    batch: int = 32
    micro_batches: int = 1  # parts of a batch computed one after another: less memory
    seed: int = 0  # of initial values, data order and everything drawn
    evaluate: tuple[str, ...] = ()  # tasks of lm.evaluate, measured at every.evaluate beside the held-out loss
    evaluate_batches: int = 0  # 0: the whole held-out split
    every: Every = Every()
    keep: Keep = Keep()
    stop: EarlyStop = EarlyStop()
    samples: tuple[str, ...] = ("",)  # prompts continued at every.sample and at the end
    start: str | None = None  # folder of a run or published model whose parameters initialise this run
    skip_limit: int = 20  # non-finite steps in a row before the run stops
    profile: int = 0  # steps to trace, after the first ten
    wandb: bool = False  # log to Weights & Biases too
    wandb_run: Wandb = Wandb()  # its project, group and tags there

    def __post_init__(self):
        check_range(self, 1, 2**31, "steps", "batch", "micro_batches", "skip_limit")  # counted in int32
        check_range(self, 0, float("inf"), "evaluate_batches", "profile")
        check_range(self, -(2**31), 2**31, "seed")  # jax.random.key takes 32 bits without x64
        check(self.every.log > 0, f"every.log={self.every.log} must be positive")
        check(min(vars(self.every).values()) >= 0, f"{self.every}: steps between two of a thing are at least 0, which is never")
        sizes = vars(self.mesh).values()
        check(min(sizes) >= -1 and max(sizes) < 2**31, f"{self.mesh}: devices along an axis are at least 1, or -1 for the rest")
        # Rules between settings classes stand here: each class sees only its own fields.
        self.stop.check_beside(self.every.evaluate, self.keep.best)
        check(
            self.batch % self.micro_batches == 0,
            f"batch={self.batch} does not divide into micro_batches={self.micro_batches}",
        )


# -- config files ------------------------------------------------------------------------------------------------------


def load(spec: str, changes: Mapping[str, Any] | None = None) -> Config:
    """Run the config file of `FILE.py[:ARG]`, or of a NAME in `configs/`, and return its Config; RUN/config.json is a run's.

    `changes`: arguments of the file, or fields at dotted paths ("optimizer.lr"), as Python values.
    """
    path, _, arg = spec.partition(":")
    path, changes, own = named(path), changes or {}, {}
    # A run's own config is a config file, too: the way to train the same again with some fields replaced.
    if path.endswith(".json"):
        check(not arg, f"config file '{path}' takes no arguments: replace single fields by --config.a.b=value")
        config = read_config(Path(path).parent)
    else:
        kind = f"config file '{path}': name a Python file with a function config(), or a run's config.json"
        check(path.endswith(".py"), kind)
        function = function_of(path)
        own = {name: changes[name] for name in inspect.signature(function).parameters if name in changes}
        values = arguments(function, arg, tuple(own)) | own
        with errors_of(path):
            config = function(**values)
        check(isinstance(config, Config), f"config() of '{path}' gives {type(config).__name__}, not a Config")
        register(config)
    return override(config, [(name, as_text(value)) for name, value in changes.items() if name not in own])


def function_of(path: str, name: str = "config") -> Callable[..., Any]:
    """Run a config file and return its function `name`."""
    # By path, under a name of its own: a config file need not lie in a package, and two may share a stem. Modules beside it
    # are found last, so that none of them takes the place of an installed one.
    if (folder := str(Path(path).absolute().parent)) not in sys.path:
        sys.path.append(folder)
    with errors_of(path):
        module_spec = importlib.util.spec_from_file_location(f"configs.{Path(path).stem}", path)
        if module_spec is None or module_spec.loader is None:
            raise UserError(f"config file '{path}' is no Python file that can be loaded")
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
    check(hasattr(module, name), f"config file '{path}' defines no function {name}()")
    return getattr(module, name)


def named(name: str, room: str = "configs") -> str:
    """Return the path of a config file: `name` itself, or configs/NAME.py, here or beside `lm`."""
    if os.path.isfile(name):
        return name
    # The configs that come with lm are found from any folder, by their path in the repository, too.
    root = Path(__file__).parent.parent
    if name.startswith(f"{room}/") and (root / name).is_file():
        return str(root / name)
    folders = [Path(room), root / room]
    for folder in folders if name.isidentifier() else ():
        if (folder / f"{name}.py").is_file():
            return str(folder / f"{name}.py")
    known = {path.stem for folder in folders for path in folder.glob("*.py")}
    close = difflib.get_close_matches(Path(name).stem, sorted(known), 1)
    raise UserError(f"config file '{name}' not found" + (f"; did you mean {close[0]}?" if close else ""))


@contextlib.contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Turn any error in a config file into a UserError with its line number; LM_TRACEBACK=1 prints the rest."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        place = f", line {error.lineno}" if error.lineno else ""
        raise UserError(f"config file '{error.filename or path}'{place}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        # The last frame in the file itself: an error deep in a dataclass belongs to the line that constructs it.
        place = f", line {lines[-1]}" if lines else ""
        raise UserError(f"config file '{path}'{place}: {type(error).__name__}: {one_line(str(error))}") from error


# -- JSON --------------------------------------------------------------------------------------------------------------


def to_json(config: Any) -> str:
    """Serialise a dataclass tree as JSON; every object names its class under "type"."""

    def plain(value):
        if dataclasses.is_dataclass(value):
            named = {f.name: plain(getattr(value, f.name)) for f in chosen(value)}
            return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **named}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return value

    # Non-ASCII prompts and paths stay readable: people edit this file.
    return json.dumps(plain(config), indent=1, ensure_ascii=False) + "\n"


def from_json(text: str | bytes, where: str = "config") -> Any:
    """Rebuild a dataclass tree; `where` names the text in errors. Raises UserError.

    Only the dataclasses of configs are constructed, with values of the fields' types: an untrusted config runs no other code.
    """

    def build(value, path):
        if isinstance(value, list):
            return tuple(build(v, f"{path}[{i}]") for i, v in enumerate(value))
        if not isinstance(value, dict):
            return value
        values = {k: build(v, f"{path}.{k}" if path else k) for k, v in value.items() if k != "type"}
        if "type" not in value:
            return values
        # The class decides which names and types are valid, before any of its code sees a value.
        cls = dataclass_named(str(value["type"]), where)
        kinds = hints(cls)
        packages = {f.name: f.metadata.get("package", "") for f in dataclasses.fields(cls)}
        for name, child in values.items():
            if name not in kinds:
                raise unknown(f"field of {value['type']}", name, list(kinds))
            # A field typed Any names the package of its values in its metadata: `objective` must not be a tokenizer.
            module = type(child).__module__
            inside = module.startswith(packages[name]) or (is_known(module) and not module.startswith("lm."))
            kind = f"of {packages[name]}" if packages[name] else described(kinds[name])
            field = f"{path}.{name}" if path else name
            check(inside and has_type(child, kinds[name]), f"{where}: {field}={one_line(repr(child), 60)} must be {kind}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {path + ': ' if path else ''}{error}") from None
        # Values of the right type may still not fit together; checks that assume more raise these.
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{where}: {path or 'the config'} ({value['type']}): {one_line(str(error))}") from error

    return build(parse_json(text, where), "")


def dataclass_named(name: str, where: str) -> type:
    """Import the dataclass `module.Class`, of a room of configs (DESCRIBING) or the user's own; raises UserError for others."""
    from lm.renamed import current  # where a stored config is read

    module, _, attribute = current(name).rpartition(".")
    parts = module.split(".")
    own = parts[0] == "lm" and len(parts) > 1 and parts[1] in DESCRIBING and parts[-1] != "__main__"
    way = f"; if the module is yours, give --modules={module}" if module and parts[0] != "lm" else ""
    known = own or (parts[0] != "lm" and is_known(module))
    check(known, f"{where} names the class '{name}', which is not part of lm's configs{way}")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where} names the class '{name}', which does not exist here") from error
    check(isinstance(cls, type) and dataclasses.is_dataclass(cls), f"{where} names '{name}', which is not a dataclass")
    return cls


def read_config(workdir: Path) -> Config:
    """Read the config of a run's folder."""
    path = Path(workdir) / "config.json"
    check(path.is_file(), f"'{workdir}' is not a run: it has no config.json")
    config = from_json(path.read_bytes(), str(path))
    check(isinstance(config, Config), f"'{path}' holds no config of a run")
    return config


# -- in Python ---------------------------------------------------------------------------------------------------------


class Called(types.ModuleType):
    """This module, callable: `lm.config("gpt_nano", steps=200, **{"optimizer.lr": 1e-3})`."""

    def __call__(self, spec: str, /, **changes: Any) -> Config:
        return load(spec, changes)


sys.modules[__name__].__class__ = Called
