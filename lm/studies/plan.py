"""The plan of a study: its runs, each with the steps that the budget allows, and their cost.

Every number of a plan comes from `Measure`, a few steps of each network on this machine (`lm.studies.measure`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm.config import Config
from lm.data.types import labelled
from lm.errors import UserError, check
from lm.evaluation.registry import label
from lm.studies.arms import changed
from lm.studies.statistics import detectable
from lm.studies.study import Arm, Study, hash_of

SEARCH = "search"  # stage of the runs that choose a tuned value
TRAIN = "train"  # the last stage of an arm; those before are stage-1, stage-2 ...


@dataclass(frozen=True)
class Measure:
    """A network's sizes and the cost of its steps on this machine; `key` names its folder."""

    key: str
    params: int
    step_tokens: float
    step_flops: float
    step_seconds: float
    state_bytes: int
    peak_bytes: int  # of the process that trains
    start_seconds: float  # from the start of the process to the first step
    quantity: str  # measured by the held-out loss


@dataclass(frozen=True)
class PlannedRun:
    """One training. `after`: hashes of the runs that must be done before it begins."""

    hash: str
    arm: str
    seed: int
    stage: str
    config: Config
    measure: Measure
    after: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Expected duration: the start and the steps; evaluations are not counted."""
        return self.measure.start_seconds + self.config.steps * self.measure.step_seconds


Measures = Callable[[Config, Measure | None], Measure]  # (config, that of the stage it starts from) -> its measure


def seeded(config: Config, seed: int) -> Config:
    """Return the config of a run with a seed."""
    return dataclasses.replace(config, seed=seed)


def half_of(config: Config, half: Literal["first", "second"]) -> Config:
    """Evaluate one half of the held-out data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, half=half))


def steps_of(study: Study, arm: Arm, measures: Measures) -> list[Config]:
    """Return an arm's stages with the steps that the study's budget gives each."""
    before: Measure | None = None
    stages = []
    for share, config in zip(arm.shares, arm.stages, strict=True):
        before = measures(config, before)
        if study.budget:
            units = {
                "steps": 1.0,
                "tokens": before.step_tokens,
                "flops": before.step_flops,
                "seconds": before.step_seconds,
            }
            steps = round(share * study.budget.amount / units[study.budget.kind])
            check(
                steps >= 1,
                f"arm '{arm.name}': a budget of {study.budget.amount:.3g} {study.budget.kind} is less than one of its steps",
            )
            config = dataclasses.replace(config, steps=steps)
        stages.append(config)
    return stages


class Planner:
    """Lists the runs of a study in the order in which they are started; runs that two arms share are listed once."""

    def __init__(self, study: Study, folder: Path, measures: Measures):
        # Absolute: a run finds its start from any working folder.
        self.study, self.folder, self.measures = study, folder.absolute(), measures

    @functools.cached_property
    def budgeted(self) -> dict[str, list[Config]]:
        """The stages of every arm, with their steps."""
        return {arm.name: steps_of(self.study, arm, self.measures) for arm in self.study.arms}

    def wanted(self) -> list[Callable[[], object]]:
        """Return functions that ask for the measures of each arm."""
        value = self.study.tune.values[0] if self.study.tune else None

        def ask(arm: Arm) -> None:
            self.trainings(arm.name, 0, value, steps_of(self.study, arm, self.measures))

        return [functools.partial(ask, arm) for arm in self.study.arms]

    def workdir(self, run: PlannedRun) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / run.hash

    def run(self, arm: str, seed: int, stage: str, config: Config, after: PlannedRun | None) -> PlannedRun:
        """Name a run by the hash of its whole config, in which the run it starts from is named by its own hash."""
        if after is not None:
            config = dataclasses.replace(config, start=f"../{after.hash}")
        digest = hash_of(config)
        measure = self.measures(config, after.measure if after else None)
        if after is not None:
            config = dataclasses.replace(config, start=str(self.folder / "runs" / after.hash))
        return PlannedRun(digest, arm, seed, stage, config, measure, (after.hash,) if after else ())

    def chain(self, arm: str, seed: int, stages: list[Config], last: str) -> list[PlannedRun]:
        """Plan the stages of one arm and seed; `last` names the last of them."""
        runs: list[PlannedRun] = []
        for number, config in enumerate(stages, 1):
            stage = last if number == len(stages) else f"stage-{number}"
            runs.append(self.run(arm, seed, stage, seeded(config, seed), runs[-1] if runs else None))
        return runs

    def searches(self, arm: str) -> dict[Any, list[PlannedRun]]:
        """Plan the runs that choose an arm's tuned value: {value: its stages}."""
        tune = self.study.tune
        if tune is None:
            return {}
        found = {}
        for value in tune.values:
            stages = [half_of(changed(config, {tune.field: value}), "first") for config in self.budgeted[arm]]
            shorter = [dataclasses.replace(one, steps=max(1, round(one.steps * tune.share))) for one in stages]
            found[value] = self.chain(arm, tune.seed, shorter, SEARCH)
        return found

    def trainings(self, arm: str, seed: int, value: Any = None, stages: list[Config] | None = None) -> list[PlannedRun]:
        """Plan the stages and downstream runs of one arm and seed; `value`: chosen by the search."""
        tune = self.study.tune
        stages = stages or self.budgeted[arm]
        if tune is not None:
            stages = [half_of(changed(config, {tune.field: value}), "second") for config in stages]
        runs = self.chain(arm, seed, stages, TRAIN)
        result = runs[-1]
        own = {**self.study.downstream, **self.study.arm(arm).downstream}
        return runs + [self.run(arm, seed, name, seeded(config, seed), result) for name, config in own.items()]

    def runs(self, chosen: Mapping[str, Any]) -> Iterator[PlannedRun]:
        """List the runs that can be named: searches, and the trainings of arms whose value is `chosen` or needs no choice."""
        names = [arm.name for arm in self.study.arms]
        listed: set[str] = set()
        waves = [[run for runs in self.searches(name).values() for run in runs] for name in names]
        # Seed by seed over all arms: an early look at the results compares every arm.
        waves += [
            self.trainings(name, seed, chosen.get(name))
            for seed in self.study.seeds
            for name in names
            if self.study.tune is None or name in chosen
        ]
        for wave in waves:
            for run in wave:
                if run.hash not in listed:
                    listed.add(run.hash)
                    yield run

    def anticipated(self, chosen: Mapping[str, Any]) -> list[PlannedRun]:
        """List all runs of the study, those of arms not tuned yet with the first value of the grid, for their cost."""
        first = self.study.tune.values[0] if self.study.tune else None
        return list(self.runs({arm.name: first for arm in self.study.arms} | dict(chosen)))


def check_figures(study: Study) -> None:
    """Raise UserError for a figure that no run of the study will have."""
    below = sorted({*study.downstream, *(name for arm in study.arms for name in arm.downstream)})
    measured = {"validation", *(label(task) for arm in study.arms for task in arm.config.evaluate)}
    for metric in study.metrics:
        first, _, rest = metric.partition("/")
        place, _, rest = rest.partition("/") if first in below else (first, "", rest)
        task = rest.partition("/")[0]
        known = place == "train" or (place == "eval" and (first in below or task in measured))
        tasks = ", ".join(f"eval/{task}/..." for task in sorted(measured))
        check(
            known,
            f"no arm has a figure '{metric}': there are {tasks}, train/..."
            + "".join(f", {name}/eval/..." for name in below)
            + "; metrics.jsonl of a run lists its own",
        )
        for arm in study.arms if metric.startswith("eval/validation/") else ():
            data = arm.config.data
            check(
                data.validation != 0 or bool(data.fold),
                f"arm '{arm.name}' holds nothing out (data.validation=0), so it has no {metric}",
            )
            examples = metric.startswith("eval/validation/examples/")
            check(not examples or labelled(data.source), f"arm '{arm.name}' reads running text: it has no {metric}")


def summary(study: Study, runs: list[PlannedRun], done: set[str], slots: int) -> dict[str, Any]:
    """Return the contents of plan.json: per arm and in all the runs, sizes, hours and disk, and what can be found."""
    arms: dict[str, Any] = {}
    for arm in study.arms:
        own = [run for run in runs if run.arm == arm.name]
        last = next((run for run in own if run.stage == TRAIN), None) or next(run for run in runs if run.stage == TRAIN)
        stages = [run for run in own if run.seed == study.seeds[0] and run.stage not in (SEARCH, *study.downstream)] or [last]
        arms[arm.name] = {
            "runs": len(own),
            "done": sum(run.hash in done for run in own),
            "params": last.measure.params,
            "steps": sum(run.config.steps for run in stages),
            "tokens": sum(run.config.steps * run.measure.step_tokens for run in stages),
            "flops": sum(run.config.steps * run.measure.step_flops for run in stages),
            "hours": sum(run.seconds for run in own) / 3600,
            "quantity": last.measure.quantity,
        }
    compared = max(1, len(study.arms) - 1)
    n = len(study.seeds)
    todo = [run for run in runs if run.hash not in done]
    return {
        "study": study.name,
        "runs": len(runs),
        "done": len(runs) - len(todo),
        "slots": slots,
        "hours": sum(run.seconds for run in todo) / 3600 / slots,
        "disk_bytes": sum(run.measure.state_bytes * saves(run.config) for run in runs),
        "seeds": n,
        # In units of the standard deviation of paired differences, with Holm's strictest level.
        "detectable_sd": detectable(n, 1 - study.level / compared, study.power) if n > 1 else math.nan,
        "arms": arms,
    }


def saves(config: Config) -> int:
    """Return the number of checkpoints that a run keeps: the newest ones, and the best where it evaluates."""
    return max(1, config.keep.last) + (config.keep.best if config.every.evaluate else 0)


def check_disk(folder: Path, needed: float) -> None:
    """Raise UserError where the disk has less room than the runs that are to come."""
    where = folder
    while not where.exists():
        where = where.parent
    try:
        state = os.statvfs(where)
    except OSError:
        return
    free = state.f_bavail * state.f_frsize
    if needed > free:
        raise UserError(
            f"the runs need {needed / 1e9:.1f} GB of disk, '{where}' has {free / 1e9:.1f} GB: lower keep.last and keep.best, "
            "or name another --workdir"
        )
