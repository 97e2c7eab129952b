"""Results of a study: of each arm and seed, its state, sizes, last figures and curve, read from the folders of its runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm.config import from_json
from lm.errors import UserError, check
from lm.strict_json import load_json
from lm.studies.measures import Measures, Missing
from lm.studies.plan import TRAIN, PlannedRun, Planner
from lm.studies.runs import State, check_asked, ended, reason_of, state_of
from lm.studies.study import Study, higher_is_better
from lm.training.writers import parse_metrics


@dataclass(frozen=True)
class Point:
    """One logged step of an arm, counted over all its stages: steps, tokens, FLOPs, seconds of training, and figures."""

    steps: int
    tokens: float
    flops: float
    seconds: float
    figures: Mapping[str, float]
    stage: int = 0  # its number, from 0


@dataclass(frozen=True)
class Outcome:
    """One arm with one seed: the results of its runs together.

    `steps` to `seconds` are sums over its stages, downstream runs and searches left out. `figures`: the last value of every
    metric, NaN where it was not finite; of the last stage by its own name, of a downstream run as NAME/eval/..., of a stage
    before as stage-1/eval/.... `quantity`: the name of the held-out loss; losses of different quantities are not comparable.
    `reason`: the last line of a run that failed. `search`: the grid of a tuned field with the figure of each value.
    """

    arm: str
    seed: int
    hash: str  # of the last stage
    state: State
    folders: Mapping[str, Path] = field(default_factory=dict)  # run folders by stage: "train", "stage-1", a downstream name
    steps: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    params: int = 0
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Point] = ()
    quantity: str = ""
    reason: str = ""
    tuned: Mapping[str, Any] = field(default_factory=dict)  # field -> value that the search chose
    search: Mapping[str, Sequence[tuple[Any, float]]] = field(default_factory=dict)
    samples: Sequence[tuple[str, str]] = ()  # (prompt, text) of the last step


def read_study(folder: Path) -> Study:
    """Read the study of a folder."""
    path = folder / "study.json"
    check(path.is_file(), f"'{folder}' is no study: it has no study.json")
    study = from_json(path.read_bytes(), str(path))
    check(isinstance(study, Study), f"'{path}' holds no study")
    return study


def read_results(folder: Path) -> tuple[Study, list[Outcome]]:
    """Read a study and its outcomes, arm by arm and seed by seed; runs that are not there are "missing".

    Raises UserError where a folder holds no study, or one whose networks were never measured.
    """
    study = read_study(folder)
    try:
        planner = Planner(study, folder, Measures(folder))
        return study, outcomes(planner)
    except Missing:
        raise UserError(f"'{folder}' has a network that was not measured: python -m launch.sweep --workdir={folder}") from None


def outcomes(planner: Planner) -> list[Outcome]:
    """Read the outcome of every arm and seed."""
    study, found = planner.study, []
    for arm in study.arms:
        grid = searched(planner, arm.name)
        value = best_value(planner, grid)
        for seed in study.seeds:
            if study.tune is not None and value is None:
                found.append(Outcome(arm.name, seed, "", "missing", reason=unfinished(planner, arm.name)))
            else:
                found.append(outcome(planner, arm.name, seed, value, grid))
    return found


def outcome(planner: Planner, arm: str, seed: int, value: Any, grid: Sequence[tuple[Any, float]]) -> Outcome:
    """Read the runs of one arm and seed."""
    study, runs = planner.study, planner.trainings(arm, seed, value)
    folders = {run.stage: planner.workdir(run) for run in runs}
    for run in runs:
        check_asked(planner.workdir(run), run.config)
    states = [state_of(planner.workdir(run)) for run in runs]
    order: tuple[State, ...] = ("failed", "running", "missing", "done")
    state = next(one for one in order if one in states)
    stages = [run for run in runs if run.stage not in study.downstream]
    figures: dict[str, float] = {}
    for run in runs:
        prefix = "" if run.stage == TRAIN else f"{run.stage}/"
        figures |= {f"{prefix}{name}": one for name, one in last_figures(planner.workdir(run)).items()}
    curve = curve_of([(run, parse_metrics(planner.workdir(run) / "metrics.jsonl")) for run in stages])
    last = stages[-1]
    tuned = {study.tune.field: value} if study.tune else {}
    return Outcome(
        arm,
        seed,
        last.hash,
        state,
        folders,
        steps=curve[-1].steps if curve else 0,
        tokens=curve[-1].tokens if curve else 0.0,
        flops=curve[-1].flops if curve else 0.0,
        params=last.measure.params,
        seconds=sum(seconds_of(planner.workdir(run)) for run in stages),
        figures=figures,
        curve=curve,
        quantity=last.measure.quantity,
        reason=next(filter(None, (reason_of(planner.workdir(run)) for run in runs)), ""),
        tuned=tuned,
        search={study.tune.field: grid} if study.tune else {},
        samples=samples_of(planner.workdir(last)),
    )


def curve_of(stages: Sequence[tuple[PlannedRun, list[dict]]]) -> list[Point]:
    """Join the logs of stages to one curve. Seconds are those of the steps: starts, evaluations and saves are left out."""
    points: list[Point] = []
    steps, tokens, flops, seconds = 0, 0.0, 0.0, 0.0
    for number, (run, lines) in enumerate(stages):
        measure, before = run.measure, 0
        rate = math.nan
        for line in lines:
            taken = line["step"] - before
            before = line["step"]
            rate = line.get("train/tokens_per_second") or rate
            steps, tokens, flops = steps + taken, tokens + taken * measure.step_tokens, flops + taken * measure.step_flops
            # The first interval has no rate: it holds the compilation.
            seconds += taken * measure.step_tokens / rate if rate > 0 else taken * measure.step_seconds
            points.append(Point(steps, tokens, flops, seconds, numbers(line), number))
    return points


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Select the figures of a log line or a summary; null stands for a value that was not finite."""
    kept = {name: value for name, value in values.items() if name.startswith(("train/", "eval/"))}
    return {name: math.nan if value is None else float(value) for name, value in kept.items() if not isinstance(value, str)}


def last_figures(workdir: Path) -> dict[str, float]:
    """Return the last value of every figure of a run: from its summary, before its end from its log."""
    if ended(workdir):
        return numbers(load_json(workdir / "summary.json", dict))
    figures: dict[str, float] = {}
    for line in parse_metrics(workdir / "metrics.jsonl"):
        figures |= numbers(line)
    return figures


def seconds_of(workdir: Path) -> float:
    """Return the seconds of all sittings of a run; 0 before the end of the first."""
    with contextlib.suppress(OSError, UserError):
        return float(load_json(workdir / "summary.json", dict).get("seconds", 0))
    return 0.0


def samples_of(workdir: Path) -> list[tuple[str, str]]:
    """Read the samples of the last step that has any: (prompt, text)."""
    files = sorted((workdir / "samples").glob("*.txt"), key=lambda path: path.stem.zfill(20))
    if not files:
        return []
    found: list[tuple[str, str]] = []
    for line in files[-1].read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if line.startswith("--- ") and line.rstrip().endswith(" ---"):
            found.append((line.strip().removeprefix("--- ").removesuffix(" ---"), ""))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


# -- the search of a tuned field --------------------------------------------------------------------------------------


def searched(planner: Planner, arm: str, states: Mapping[str, State] | None = None) -> list[tuple[Any, float]]:
    """Return the figure of each value of the search that has ended; NaN for one whose run failed.

    `states`: of a sweep that goes on, in which a run has failed only once it is not tried again; None: read from the folders.
    """

    def failed(run: PlannedRun) -> bool:
        state = state_of(planner.workdir(run)) if states is None else states.get(run.hash)
        return state == "failed"

    tune, found = planner.study.tune, []
    if tune is None:
        return []
    for value, runs in planner.searches(arm).items():
        workdir = planner.workdir(runs[-1])
        if ended(workdir):
            found.append((value, last_figures(workdir).get(tune.metric, math.nan)))
        elif any(map(failed, runs)):
            found.append((value, math.nan))
    return found


def best_value(planner: Planner, grid: Sequence[tuple[Any, float]]) -> Any:
    """Return the best value of a search; None while runs of it are missing, or where all have failed."""
    tune = planner.study.tune
    finite = [(figure, value) for value, figure in grid if math.isfinite(figure)]
    if tune is None or len(grid) < len(tune.values) or not finite:
        return None
    return (max if higher_is_better(tune.metric) else min)(finite, key=lambda pair: pair[0])[1]


def chosen(planner: Planner, states: Mapping[str, State]) -> dict[str, Any]:
    """Return the value of every arm whose search has ended; `states` as in `searched`."""
    values = {arm.name: best_value(planner, searched(planner, arm.name, states)) for arm in planner.study.arms}
    return {name: value for name, value in values.items() if value is not None}


def unfinished(planner: Planner, arm: str) -> str:
    """Say why an arm has no tuned value: the last line of a search that failed."""
    runs = [run for each in planner.searches(arm).values() for run in each]
    return next(filter(None, (reason_of(planner.workdir(run)) for run in runs)), "")
