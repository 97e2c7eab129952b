"""A run is a value: the dataclasses, strict overrides with "did you mean", JSON both ways.

A config file is a Python file with a function `config(...) -> Config`; the ARG of `--config=FILE.py:ARG` is `key=value`
pairs joined by commas and becomes that function's keyword arguments. `--config.a.b=value` then replaces single fields.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lm.data.prepare import Data
from lm.errors import UserError, check, check_choices, check_range, unknown
from lm.groups import Groups
from lm.privacy import Private
from lm.stopping import EarlyStop
from lm.suggestions import no_field


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; one of them may be -1, "all that are left"."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1


@dataclass(frozen=True, kw_only=True)
class Every:
    """Steps between two of a thing; 0 is never. Evaluation, samples and a checkpoint also come at the end of the run."""

    log: int = 50
    evaluate: int = 1000
    save: int = 1000
    sample: int = 0


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Checkpoints that stay on disk: the `last` ones and the `best` ones by the held-out loss, or by `Config.stop.metric`."""

    last: int = 2
    best: int = 1

    def __post_init__(self):
        check_range(self, 0, float("inf"), "last", "best")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Update rule; `lr` is the peak that the schedule scales. Fields a rule does not have are not looked at.

    `decay` is decoupled weight decay, times the learning rate, on matrices only: a parameter with an "embed" axis and at
    least one more. `clip` bounds the global gradient norm (0: off). `average` is the decay of an exponential moving
    average of the parameters, which evaluation and generation then use (0: none).
    """

    name: Literal["adamw", "adamw_bert", "lamb", "adafactor", "lion", "muon", "sgd"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    decay: float = 0.0
    clip: float = 0.0
    average: float = 0.0
    groups: Groups = Groups()
    private: Private = Private()

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "lr", "decay", "clip")
        check_range(self, 0, 1, "average", "momentum")
        check(all(0 <= b < 1 for b in self.betas), f"betas={self.betas} must be at least 0 and below 1")
        check(0 < self.eps < float("inf"), f"eps={self.eps} must be positive")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factor over steps: linear warm-up over `warmup` steps, then the shape, down to `final` x peak,
    which is met at `steps`, one past the last update.

    `decay` is the length of the last phase of "wsd" (warm-up, stable, decay) as a share of all steps.
    """

    shape: Literal["constant", "linear", "linear_bert", "cosine", "rsqrt", "flat_rsqrt", "wsd"] = "constant"
    warmup: int = 0
    final: float = 0.0
    decay: float = 0.2

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "warmup")
        check(0 <= self.final <= 1, f"final={self.final} must be from 0 to 1")
        check(0 <= self.decay <= 1, f"decay={self.decay} must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, whole. `batch` counts sequences a step over all devices; `objective` is the object, not its name."""

    objective: Any
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    mesh: Mesh = Mesh()
    steps: int = 1000
    batch: int = 32
    micro_batches: int = 1
    seed: int = 0
    evaluate: tuple[str, ...] = ()  # tasks measured at every.evaluate beside the held-out loss, as lm.evaluate names them
    evaluate_batches: int = 0  # 0: the whole held-out split
    every: Every = Every()
    keep: Keep = Keep()
    stop: EarlyStop = EarlyStop()
    samples: tuple[str, ...] = ("",)  # prompts continued at every.sample and at the end
    start: str | None = None  # a run's folder to take the weights from
    skip_limit: int = 20  # non-finite steps in a row before the run stops
    profile: int = 0  # steps to trace, starting ten steps after the first one
    wandb: bool = False

    def __post_init__(self):
        check_range(self, 1, float("inf"), "steps", "batch", "micro_batches", "skip_limit")
        check_range(self, 0, float("inf"), "evaluate_batches", "profile")
        check_range(self, -(2**31), 2**31, "seed")
        check(self.every.log > 0, f"every.log={self.every.log} must be positive")
        check(min(vars(self.every).values()) >= 0, f"{self.every}: steps between two of a thing are at least 0, which is never")
        check(min(vars(self.mesh).values()) >= -1, f"{self.mesh}: devices along an axis are at least 1, or -1 for the rest")
        self.stop.check_beside(self.every.evaluate, self.keep.best)
        check(
            self.batch % self.micro_batches == 0,
            f"batch={self.batch} does not divide into micro_batches={self.micro_batches}",
        )


# -- text to typed values ----------------------------------------------------------------------------------------------


def parse(text: str, kind: Any, name: str) -> Any:
    """Read one value of the annotated type `kind`; `name` is for the error."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
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
    """Read a number; 1e3 and 2_000 are whole numbers too."""
    try:
        value = ast.literal_eval(text)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if fits and (kind is float or value == kind(value)):
            return kind(value)
    except (ValueError, SyntaxError, OverflowError):
        pass
    raise UserError(f"{name}: '{text}' is not {'a whole number' if kind is int else 'a number'}")


def hints(cls: type) -> dict[str, Any]:
    """Map a dataclass's field names to their annotated types."""
    found = typing.get_type_hints(cls)
    return {f.name: found[f.name] for f in dataclasses.fields(cls) if f.init}


def override(config: Any, pairs: Sequence[tuple[str, str]], seen: str = "", whole: Any = None) -> Any:
    """Replace fields at dotted paths by parsed values, all at once; unknown names fail with the one in `whole` they mean."""
    valid = hints(type(config))
    changes: dict[str, Any] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, text in pairs:
        name, _, rest = path.partition(".")
        where = f"{seen}{name}"
        if name not in valid:
            raise no_field(whole or config, f"{seen}{path}")
        value = getattr(config, name)
        if rest:
            check(dataclasses.is_dataclass(value), f"{where} has no fields of its own (it is {value!r})")
            groups.setdefault(name, []).append((rest, text))
        elif dataclasses.is_dataclass(value):
            raise UserError(f"{where} is a group of fields; set one of them: {', '.join(hints(type(value)))}")
        else:
            changes[name] = parse(text, valid[name], where)
    changes |= {n: override(getattr(config, n), inner, f"{seen}{n}.", whole or config) for n, inner in groups.items()}
    return dataclasses.replace(config, **changes)


def load(spec: str) -> Config:
    """Run the config file of `FILE.py[:ARG]` and return its Config."""
    path, _, arg = spec.partition(":")
    check(os.path.isfile(path), f"config file '{path}' not found")
    module_spec = importlib.util.spec_from_file_location(f"configs.{Path(path).stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    check(hasattr(module, "config"), f"config file '{path}' defines no function config()")
    found = module.config(**arguments(module.config, arg))
    check(isinstance(found, Config), f"config() of '{path}' gives {type(found).__name__}, not a Config")
    return found


def arguments(function: Callable, arg: str) -> dict[str, Any]:
    """Parse `key=value,key=value` into keyword arguments of a config function, by its annotations."""
    parameters = inspect.signature(function, eval_str=True).parameters
    valid = {n: p.annotation for n, p in parameters.items()}
    result, key = {}, None
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
        check(parameter.default is not parameter.empty or name in result, f"this config needs {name}=VALUE after its colon")
    return {name: parse(text, valid[name], name) for name, text in result.items()}


# -- JSON --------------------------------------------------------------------------------------------------------------


def to_json(config: Any) -> str:
    """Write a dataclass tree as JSON text; every object names its class under "type"."""

    def plain(value):
        if dataclasses.is_dataclass(value):
            named = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
            return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **named}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return value

    return json.dumps(plain(config), indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> Any:
    """Rebuild a dataclass tree. Only dataclasses of `lm` are constructed: a config from elsewhere runs no other code."""

    def build(value):
        if isinstance(value, list):
            return tuple(build(v) for v in value)
        if not isinstance(value, dict):
            return value
        fields = {k: build(v) for k, v in value.items() if k != "type"}
        if "type" not in value:
            return fields
        cls = dataclass_named(str(value["type"]))
        for name in fields:
            if name not in hints(cls):
                raise unknown(f"field of {value['type']}", name, list(hints(cls)))
        try:
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise UserError(f"not a config: {value['type']}: {error}") from error

    try:
        return build(json.loads(text))
    except json.JSONDecodeError as error:
        raise UserError(f"not a config: broken JSON at line {error.lineno}: {error.msg}") from error


def dataclass_named(name: str) -> type:
    """Import the dataclass `lm.module.Class`."""
    module, _, attribute = name.rpartition(".")
    check(module.split(".")[0] == "lm", f"config names the class '{name}', which is not part of lm")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"config names the class '{name}', which does not exist here") from error
    check(isinstance(cls, type) and dataclasses.is_dataclass(cls), f"config names '{name}', which is not a dataclass")
    return cls


def read_config(workdir: Path) -> Config:
    """Read the config that a run left in its folder."""
    path = Path(workdir) / "config.json"
    check(path.is_file(), f"'{workdir}' is not a run: it has no config.json")
    config = from_json(path.read_text(encoding="utf-8"))
    check(isinstance(config, Config), f"'{path}' holds no config of a run")
    return config
