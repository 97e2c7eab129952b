"""A study as a value: arms that differ in one thing, shared seeds, a budget that makes them equal, the figures compared.

A study file is a Python file with a function `study(...) -> Study`, as a config file has `config(...)`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lm.config import Config, errors_of, function_of, named, to_json
from lm.errors import UserError, check, check_range, unknown
from lm.extensions import register
from lm.fields import arguments, chosen
from lm.training.stopping import EarlyStop

LOSS = "eval/validation/loss"
KINDS = ("steps", "tokens", "flops", "seconds")
DIGITS = 12  # of a hash: two of 10,000 runs are equal with a probability of 2e-7


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One variant. `stages`: the trainings one after another, each from the parameters of the one before.

    `shares`: parts of the study's budget that the stages take, equal parts by default. `downstream`: in place of the study's
    configs of these names, where a network needs another form of them. `control_of`: name of the arm that is compared with this
    one in addition to the baseline, such as one with as many parameters but without the idea.
    """

    name: str
    stages: tuple[Config, ...]
    shares: tuple[float, ...] = ()
    downstream: Mapping[str, Config] = field(default_factory=dict)
    control_of: str = ""

    def __post_init__(self):
        check(
            bool(re.fullmatch(r"[^\s/,|][^\n/,|]*", self.name)), f"arm '{self.name}': a name has no line end, '/', ',' or '|'"
        )
        stages = self.stages
        fits = isinstance(stages, tuple) and bool(stages) and all(isinstance(one, Config) for one in stages)
        check(fits, f"arm '{self.name}': stages is a tuple of Configs")
        shares = self.shares or (1 / len(stages),) * len(stages)
        check(len(shares) == len(stages), f"arm '{self.name}' has {len(stages)} stages and {len(shares)} shares")
        check(all(share > 0 for share in shares), f"arm '{self.name}': shares={shares} must be positive")
        object.__setattr__(self, "shares", tuple(share / sum(shares) for share in shares))

    @property
    def config(self) -> Config:
        """The last stage, whose figures are the arm's."""
        return self.stages[-1]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The amount that every arm trains for, in one of four units; 0: not this one.

    `flops` counts the whole step: a generator, both streams, encoder and decoder. `seconds` are those of a measured step.
    """

    steps: float = 0
    tokens: float = 0
    flops: float = 0
    seconds: float = 0

    def __post_init__(self):
        check_range(self, 0, math.inf, *KINDS)
        given = [kind for kind in KINDS if getattr(self, kind)]
        check(len(given) == 1, f"a budget is of one kind ({', '.join(KINDS)}), not of {' and '.join(given) or 'none'}")

    @property
    def kind(self) -> str:
        """The unit."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @property
    def amount(self) -> float:
        """The number of units."""
        return getattr(self, self.kind)


@dataclass(frozen=True, kw_only=True)
class Tune:
    """A grid over one field, searched for each arm before its runs: every stage of the arm takes the best value.

    Trained with `seed`, which is none of the study's, and chosen by `metric` on one half of the held-out data; the study's runs
    are measured on the other half, so that the choice does not leak. `share`: part of the steps that a run of the search takes.
    """

    values: tuple[Any, ...]
    field: str = "optimizer.lr"
    metric: str = LOSS
    seed: int = 1000
    share: float = 1.0

    def __post_init__(self):
        check(len(self.values) > 1, f"tune.values={self.values}: a grid has at least two values")
        check(0 < self.share <= 1, f"tune.share={self.share} must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms, seeds, budget and figures. Seed s gives every arm the same data order, held-out rows and, where shapes agree, the
    same initial values, so that differences between arms are paired.

    `downstream`: configs by name that are trained from the result of every arm, such as fine-tunings; their figures are named
    NAME/eval/.... `metrics`: the figures compared, the first of them first in tables. `level`: error rate of a verdict over all
    arms together. `power`: probability of finding a difference that the plan asks for. `relevant`: smallest difference of the
    first figure that matters, 0: any. `scaling`: fit a scaling law over the arms' parameters and tokens, or isoFLOP parabolas.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    name: str = ""
    question: str = ""
    baseline: str = ""
    budget: Budget | None = None
    tune: Tune | None = None
    downstream: Mapping[str, Config] = field(default_factory=dict)
    metrics: tuple[str, ...] = (LOSS,)
    level: float = 0.05
    power: float = 0.8
    relevant: float = 0.0
    scaling: Literal["", "law", "isoflop"] = ""

    def __post_init__(self):
        if isinstance(self.seeds, int):
            object.__setattr__(self, "seeds", tuple(range(self.seeds)))
        check(bool(self.arms) and all(isinstance(arm, Arm) for arm in self.arms), "a study has at least one Arm")
        check(bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), f"seeds={self.seeds}: give different whole numbers")
        check(bool(self.metrics), "metrics is empty: name a figure, such as eval/validation/loss")
        check(0 < self.level < 1 and 0 < self.power < 1, f"level={self.level} and power={self.power} lie between 0 and 1")
        names = [arm.name for arm in self.arms]
        twice = next((name for name in names if names.count(name) > 1), None)
        check(twice is None, f"two arms are named '{twice}'")
        for name in (self.baseline, *(arm.control_of for arm in self.arms)):
            if name and name not in names:
                raise unknown("arm", name, names)
        if not self.baseline:
            object.__setattr__(self, "baseline", names[0])
        check(self.tune is None or self.tune.seed not in self.seeds, "tune.seed is one of the study's seeds: take another")
        same: dict[str, str] = {}
        for arm in self.arms:
            # The study sets the seeds: arms that differ in nothing else are one.
            facts = repr([arm.shares, *(to_json(dataclasses.replace(one, seed=0)) for one in arm.stages)])
            other = same.setdefault(facts, arm.name)
            check(other == arm.name, f"arms '{other}' and '{arm.name}' are equal: no field differs")
        for arm in self.arms:
            for name in arm.downstream:
                if name not in self.downstream:
                    raise unknown(f"downstream config of arm '{arm.name}'", name, list(self.downstream))
        for name, config in (pair for one in (self, *self.arms) for pair in one.downstream.items()):
            check(bool(re.fullmatch(r"[\w.-]+", name)), f"downstream '{name}': a name has letters, digits, '_', '.' and '-'")
            check(isinstance(config, Config), f"downstream '{name}' is no Config")

    def arm(self, name: str) -> Arm:
        """Return an arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)


def higher_is_better(metric: str) -> bool:
    """Return the direction of a figure by the last part of its name, as early stopping does."""
    return EarlyStop(metric=metric).sign < 0


def hash_of(config: Config) -> str:
    """Return the hash of a whole config, which names the folder of its run.

    Fields at their defaults are left out, and classes are named without their modules: a version of lm in which a class has
    moved, or a config has one more field, still finds the runs. `lm.studies.runs.check_asked` guards against a changed default.
    """
    return hashlib.sha256(json.dumps(essential(config), sort_keys=True).encode()).hexdigest()[:DIGITS]


def essential(value: Any) -> Any:
    """Return a dataclass tree as plain values, without the fields that have their default."""
    if dataclasses.is_dataclass(value):
        fields = {one.name: getattr(value, one.name) for one in chosen(value) if getattr(value, one.name) != default_of(one)}
        return {"type": type(value).__qualname__, **{name: essential(one) for name, one in fields.items()}}
    if isinstance(value, tuple | list):
        return [essential(one) for one in value]
    if isinstance(value, Mapping):
        return {name: essential(one) for name, one in value.items()}
    return value


def default_of(one: dataclasses.Field) -> Any:
    """Return the default of a field, MISSING where there is none."""
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


def differences(arms: tuple[Arm, ...]) -> dict[str, dict[str, str]]:
    """Return the fields in which the last stages of arms differ: {path: {arm: value}}."""
    leaves = {arm.name: dict(fields_of(arm.config)) for arm in arms}
    paths = dict.fromkeys(path for each in leaves.values() for path in each)
    table = {path: {name: each.get(path, "") for name, each in leaves.items()} for path in paths}
    return {path: row for path, row in table.items() if len(set(row.values())) > 1}


def fields_of(value: Any, path: str = "") -> list[tuple[str, str]]:
    """List the (dotted path, value as text) of all fields of a dataclass tree; of a dataclass its type, too."""
    if not dataclasses.is_dataclass(value):
        return [(path, str(value))]
    found = [(f"{path}.type" if path else "type", type(value).__name__)]
    for one in chosen(value):
        found += fields_of(getattr(value, one.name), f"{path}.{one.name}" if path else one.name)
    return found


def load_study(spec: str) -> Study:
    """Run the study file of FILE.py[:key=value,...], or of a NAME in configs/studies/; raises UserError."""
    path, _, arg = spec.partition(":")
    path = named(path, "configs/studies")
    function = function_of(path, "study")
    values = arguments(function, arg)
    with errors_of(path):
        study = function(**values)
    if not isinstance(study, Study):
        raise UserError(f"study() of '{path}' gives {type(study).__name__}, not a Study")
    register(study)
    return study if study.name else dataclasses.replace(study, name=Path(path).stem)
