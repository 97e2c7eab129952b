"""Run an ablation study: arms that differ in one thing, several seeds each. The same command resumes and completes it.

    python -m launch.sweep --config=configs/gpt_nano.py --grid='objective.model.positions=rotary,learned' --seeds=5 [--go]
    python -m launch.sweep --study=configs/studies/NAME.py[:key=value,...] [--seeds=N] [--steps=N] [--workdir=DIR] [--go]
    python -m launch.sweep --workdir=DIR --go        # goes on with the study of a folder

Prints the plan first: arms, runs, parameters, tokens, FLOPs, hours, disk, and the smallest difference that so many seeds find.
A folder `runs/HASH` holds each run; `python -m launch.report DIR` compares the arms, also while runs are missing.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from lm.config import Config, load, to_json
from lm.errors import UserError, check
from lm.fields import override
from lm.flags import run
from lm.outputs import replace_file
from lm.strict_json import dump_json

if TYPE_CHECKING:  # scipy and jinja2 would cost --help its second
    from lm.studies.engine import View
    from lm.studies.plan import PlannedRun, Planner
    from lm.studies.runs import State
    from lm.studies.slots import Slot
    from lm.studies.study import Study

CONFIG = flags.DEFINE_string("config", None, "config that the arms change: FILE.py[:key=value,...], or a NAME in configs/")
GRID = flags.DEFINE_multi_string("grid", [], "fields with their values, all combinations: 'a.b=v1,v2 c=d,e'")
ZIP = flags.DEFINE_multi_string("zip", [], "fields that change together, one more axis of the grid: 'a.b=v1,v2 c=d,e'")
STUDY = flags.DEFINE_string("study", None, "study: FILE.py[:key=value,...], or a NAME in configs/studies/")
SEEDS = flags.DEFINE_integer("seeds", None, "number of seeds, 0 to N - 1 (default: the study's, for a grid 3)", 1, 10_000)
STEPS = flags.DEFINE_integer("steps", None, "budget of every arm in steps", 1)
TOKENS = flags.DEFINE_float("tokens", None, "budget of every arm in tokens", 1)
FLOPS = flags.DEFINE_float("flops", None, "budget of every arm in FLOPs", 1)
SECONDS = flags.DEFINE_float("seconds", None, "budget of every arm in seconds of training, as measured for the plan", 1)
METRICS = flags.DEFINE_list("metric", [], "figures to compare, joined by commas (default: the study's)")
BASELINE = flags.DEFINE_string("baseline", None, "arm that the others are compared with (default: the first)")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the study (default: runs/NAME)")
JOBS = flags.DEFINE_integer("jobs", 0, "runs at a time (default: as many as there are cores or GPUs)", 0)
CORES = flags.DEFINE_integer("cores", 1, "cores of a run on a CPU; a fixed number, as it may change the last bits of a run", 1)
MEMORY = flags.DEFINE_float("memory", 0, "gigabytes for all runs together (default: 80 % of the machine's)", 0)
BACKEND = flags.DEFINE_enum("backend", "local", ["local", "slurm"], "run on this machine, or as jobs of a cluster")
PARTITION = flags.DEFINE_string("partition", None, "SLURM: partition of the jobs")
MINUTES = flags.DEFINE_integer("minutes", 60, "SLURM: time limit of a job, which is requeued and resumes until it is done", 1)
GO = flags.DEFINE_bool("go", False, "start the missing runs")


def main(overrides: list[tuple[str, str]]) -> None:
    """Print the plan; with --go start the missing runs and write the report."""
    study, folder = asked(overrides)
    check(folder.is_dir() or not folder.exists(), f"--workdir={folder} is a file; name a folder")
    changes = {} if SEEDS.value is None else {"seeds": tuple(range(SEEDS.value))}
    changes |= {"metrics": tuple(METRICS.value)} if METRICS.value else {}
    changes |= {"baseline": BASELINE.value} if BASELINE.value else {}
    changes |= budget()
    sweep(dataclasses.replace(study, **changes), folder)


def asked(overrides: list[tuple[str, str]]) -> tuple[Study, Path]:
    """Return the study that the command line asks for, and its folder."""
    from lm.studies.arms import axis, grid, parse_axes, together
    from lm.studies.results import read_study
    from lm.studies.study import Study, load_study

    given = [name for name, flag in (("config", CONFIG), ("study", STUDY)) if flag.value]
    check(len(given) < 2, "--config and --study exclude each other: give one")
    if STUDY.value:
        check(
            not (overrides or GRID.value or ZIP.value), "a study file holds its own arms: leave out --grid, --zip and --config."
        )
        study = load_study(STUDY.value)
        return study, Path(WORKDIR.value or f"runs/{study.name}")
    if CONFIG.value:
        config = override(load(CONFIG.value), overrides)
        axes = [axis(path, values) for text in GRID.value for path, values in parse_axes(text).items()]
        axes += [together(parse_axes(text)) for text in ZIP.value]
        check(bool(axes), "what should differ? --grid='optimizer.lr=1e-3,3e-3 objective.model.positions=learned,rotary'")
        name = Path(CONFIG.value.partition(":")[0]).stem
        folder = Path(WORKDIR.value or f"runs/{name}-sweep")
        return Study(name=folder.name, arms=grid(config, {}, *axes)), folder
    folder = WORKDIR.value
    check(bool(folder), "which study? --study=configs/studies/NAME.py, --config=... --grid=..., or --workdir=DIR of one")
    return read_study(Path(folder)), Path(folder)


def budget() -> dict:
    """Return the budget of the command line."""
    from lm.studies.study import Budget

    flag_of = {"steps": STEPS, "tokens": TOKENS, "flops": FLOPS, "seconds": SECONDS}
    given = {name: flag.value for name, flag in flag_of.items() if flag.value}
    return {"budget": Budget(**given)} if given else {}


def sweep(study: Study, folder: Path) -> None:
    """Print the plan of a study; with --go, or after confirmation on a terminal, start the missing runs; write the report."""
    from lm.studies.live import Live, table_of
    from lm.studies.measures import Measures, complete
    from lm.studies.plan import Planner, check_disk, check_figures, saves, summary
    from lm.studies.results import chosen
    from lm.studies.runs import check_asked, ended
    from lm.studies.slots import available_cores, memory_budget, slots_of
    from lm.studies.slurm import check_cluster

    check_figures(study)
    memory, cluster = memory_budget(MEMORY.value), BACKEND.value == "slurm"
    if cluster:  # before anything is measured
        check_cluster()
    # The nodes of a cluster are not this machine, which only measures.
    slots = slots_of(0, min(CORES.value, len(available_cores()))) if cluster else slots_of(JOBS.value, CORES.value)
    measures = Measures(folder)
    planner = Planner(study, folder, measures)
    complete(measures, [*planner.wanted(), lambda: planner.anticipated({})], slots, lambda line: print(line, flush=True))
    runs = planner.anticipated(chosen(planner, {}))
    for one in runs:
        check_asked(planner.workdir(one), one.config)
    done = {one.hash for one in runs if ended(planner.workdir(one))}
    plan = summary(study, runs, done, (JOBS.value or len(runs)) if cluster else len(slots))
    print("\n".join(table_of(plan)))
    for line in notices(study, folder, {one.hash for one in runs}):
        print(line)
    todo = [one for one in runs if one.hash not in done]
    if todo and not GO.value and not agreed():
        print("nothing is run without --go")
        return
    check_disk(folder, sum(one.measure.state_bytes * saves(one.config) for one in todo))
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "study.json", to_json(study))
    replace_file(folder / "plan.json", dump_json(plan, indent=1) + "\n")
    interrupted = False
    if todo:
        view = Live()
        try:
            interrupted = engine(study, folder, planner, slots, memory, view)
        finally:
            view.close()
    conclude(folder, interrupted)


def engine(study: Study, folder: Path, planner: Planner, slots: Sequence[Slot], memory: int, view: View) -> bool:
    """Start the missing runs on the backend; return whether a signal ended the sweep."""
    from lm.studies.engine import Sweep
    from lm.studies.results import chosen
    from lm.studies.study import differences

    def plan(states: Mapping[str, State]) -> list[PlannedRun]:
        return list(planner.runs(chosen(planner, states)))

    if BACKEND.value == "slurm":
        from lm.studies.slurm import Cluster

        limits = (CORES.value, PARTITION.value, MINUTES.value, JOBS.value)
        return Cluster(folder, study.name, plan, view, *limits, differences(study.arms)).go()
    return Sweep(folder, study.name, plan, slots, memory, view, differences(study.arms)).go()


def conclude(folder: Path, interrupted: bool) -> None:
    """Write the report of what is there."""
    from lm.studies.report import write_report
    from lm.studies.results import read_results

    study, outcomes = read_results(folder)
    states = [one.state for one in outcomes]
    if any(state == "done" for state in states):
        print(write_report(folder, study, outcomes))
    if interrupted:
        again = f"--workdir={folder} --go" + " --backend=slurm" * (BACKEND.value == "slurm")
        print(f"stopped, and every run saved; the same command goes on: python -m launch.sweep {again}")
        sys.exit(130)
    failed = [one for one in outcomes if one.state == "failed"]
    for one in failed:
        print(f"failed: {one.arm}, seed {one.seed}: {one.reason}", file=sys.stderr)
    if failed:
        sys.exit(1)


def notices(study: Study, folder: Path, planned: set[str]) -> list[str]:
    """Say which runs of an earlier study in this folder stay valid."""
    from lm.studies.results import read_study

    there = {path.name for path in (folder / "runs").glob("*") if (path / "arm.json").exists()}
    try:
        changed = there and to_json(read_study(folder)) != to_json(study)
    except UserError:
        changed = False
    if not changed:
        return []
    return [
        f"the study has changed: {len(there & planned)} of {len(there)} runs stay valid, the others are kept and not counted"
    ]


def agreed() -> bool:
    """Ask on a terminal whether to start."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return input("start? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    run(main, Config)
