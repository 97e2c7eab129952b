"""The engine of a sweep with processes that only pretend to train: order, slots, memory, second tries, signals."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from lm.config import from_json, load
from lm.errors import UserError
from lm.extensions import register
from lm.studies import engine
from lm.studies.engine import Sweep
from lm.studies.plan import Measure, PlannedRun, Planner, check_disk
from lm.studies.results import chosen
from lm.studies.runs import reason_of
from lm.studies.slots import Slot
from lm.studies.study import Arm, Study, Tune
from tests.examples.shuffled import Shuffled

CONFIG = load("tests/configs/tiny.py")


class Trainings:
    """Stands in for `engine.spawn`: a run takes some looks and ends well, unless its arm fails so many times."""

    def __init__(self, monkeypatch, sweep, failures=()):
        self.sweep, self.failures, self.log, self.most, self.memory = sweep, dict(failures), [], 0, 0
        monkeypatch.setattr(engine, "PAUSE", 0)
        monkeypatch.setattr(engine, "spawn", self.spawn)

    def spawn(self, workdir, slot, claim):
        label = json.loads((workdir / "arm.json").read_text())
        self.log.append(label["arm"])
        looks, fails = 3, self.failures.get(label["arm"], 0)
        self.failures[label["arm"]] = fails - 1

        def poll():
            nonlocal looks
            looks -= 1
            started = self.sweep.started
            assert len({one.slot.cores for one in started}) == len(started)
            self.most = max(self.most, len(started))
            self.memory = max(self.memory, sum(one.run.measure.peak_bytes for one in started))
            if looks > 0:
                return None
            if fails <= 0:
                (workdir / "summary.json").write_text(json.dumps({"steps": CONFIG.steps}))
            else:
                (workdir / "console.txt").write_text("Traceback\nerror: the disk is full\n\n")
            process.returncode = 2 if fails > 0 else 0
            return process.returncode

        process = SimpleNamespace(poll=poll, returncode=None, send_signal=lambda number: None, wait=lambda: None)
        return process


def run_of(name, after=(), size=1):
    measure = Measure(name, 1, 1.0, 1.0, 1.0, 1, size, 1.0, "")
    config = dataclasses.replace(CONFIG, batch=8 + len(name))
    return PlannedRun(name, name, 0, "train", config, measure, tuple(after))


@pytest.fixture
def lines():
    return []


@pytest.fixture
def sweep_of(tmp_path, lines):
    view = SimpleNamespace(show=lambda sweep: None, say=lines.append)

    def made(runs, slots=2, memory=100):
        return Sweep(tmp_path, "study", lambda states: runs, [Slot(str(k)) for k in range(slots)], memory, view)

    return made


def test_runs_fill_the_slots_and_wait_for_those_they_start_from(sweep_of, monkeypatch):
    runs = [run_of("a"), run_of("b", after=["a"]), run_of("c"), run_of("d", after=["b"]), run_of("e")]
    sweep = sweep_of(runs)
    trainings = Trainings(monkeypatch, sweep)
    assert sweep.go() is False
    assert sorted(trainings.log) == ["a", "b", "c", "d", "e"]
    assert trainings.most == 2
    assert trainings.log.index("a") < trainings.log.index("b") < trainings.log.index("d")
    assert set(sweep.states.values()) == {"done"}
    # A second call has nothing to do.
    again = Trainings(monkeypatch, sweep)
    sweep.go()
    assert not again.log


def test_memory_bounds_the_runs(sweep_of, monkeypatch):
    runs = [run_of("a", size=60), run_of("b", size=60), run_of("c", size=40), run_of("huge", size=500)]
    sweep = sweep_of(runs, slots=4)
    trainings = Trainings(monkeypatch, sweep)
    sweep.go()
    assert sorted(trainings.log) == ["a", "b", "c", "huge"]
    assert trainings.log.index("c") < trainings.log.index("b")  # beside the first, which leaves no memory for the second
    assert trainings.memory == 500  # alone: it would never run otherwise


def test_a_failure_is_tried_again_once_and_stops_nothing(sweep_of, monkeypatch, lines, tmp_path):
    runs = [run_of("once"), run_of("twice"), run_of("next", after=["twice"]), run_of("fine")]
    sweep = sweep_of(runs)
    trainings = Trainings(monkeypatch, sweep, {"once": 1, "twice": 9})
    sweep.go()
    assert sorted(trainings.log) == ["fine", "once", "once", "twice", "twice"]
    assert sweep.states == {"once": "done", "twice": "failed", "next": "missing", "fine": "done"}
    assert lines.count("again    twice, seed 0: error: the disk is full") == 1
    assert lines.count("failed   twice, seed 0: error: the disk is full") == 1
    assert reason_of(tmp_path / "runs" / "twice") == "error: the disk is full"
    # The next call tries it again, and what waits for it.
    later = sweep_of(runs)
    trainings = Trainings(monkeypatch, later)
    later.go()
    assert sorted(trainings.log) == ["next", "twice"]


def test_a_search_waits_for_the_second_try(tmp_path, sweep_of, monkeypatch):
    """A value whose run failed once is still open: the choice would otherwise change after the runs that rest on it."""
    config = dataclasses.replace(CONFIG, every=dataclasses.replace(CONFIG.every, log=2))
    study = Study(arms=(Arm(name="a", stages=(config,)),), seeds=(0,), tune=Tune(values=(1e-3, 1e-2)))
    measure = Measure("k", 1, 1.0, 1.0, 1.0, 1, 1, 1.0, "")
    planner = Planner(study, tmp_path, lambda config, before: measure)
    sweep = sweep_of([])
    rates = []

    def plan(states):
        values = chosen(planner, states)
        rates.append(values.get("a"))
        return list(planner.runs(values))

    def spawn(workdir, slot, claim):
        asked = from_json((workdir / "asked.json").read_text())
        tries[asked.optimizer.lr] = tries.get(asked.optimizer.lr, 0) + 1
        fails = asked.optimizer.lr == 1e-2 and tries[1e-2] == 1  # the better value, at its first try
        if not fails:
            figures = {"steps": asked.steps, "eval/validation/loss": 1 / asked.optimizer.lr}
            (workdir / "summary.json").write_text(json.dumps(figures))
        status = 2 if fails else 0
        return SimpleNamespace(poll=lambda: status, returncode=status, send_signal=lambda number: None, wait=lambda: None)

    tries = {}
    sweep.plan = plan
    monkeypatch.setattr(engine, "PAUSE", 0)
    monkeypatch.setattr(engine, "spawn", spawn)
    sweep.go()
    assert {rate for rate in rates if rate} == {1e-2}
    assert sorted(tries.items()) == [(1e-3, 1), (1e-2, 3)]


def test_processes_know_the_modules_of_the_user():
    """A run whose objective is the user's own reads its config.json by --modules."""
    assert not any("--modules" in word for word in Slot("0").command("lm.main") if "tests." not in word)
    register(Shuffled(model=CONFIG.objective.model))
    (last,) = [word for word in Slot("0").command("lm.main", "--workdir=x") if word.startswith("--modules=")]
    assert "tests.examples.shuffled" in last.removeprefix("--modules=").split(",")
    assert not any(name.startswith("lm.") for name in last.removeprefix("--modules=").split(","))


def test_the_disk_must_hold_the_runs(tmp_path, monkeypatch):
    check_disk(tmp_path / "new" / "study", 1000)
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_bavail=10, f_frsize=100))
    check_disk(tmp_path / "new" / "study", 1000)
    with pytest.raises(UserError, match="lower keep"):
        check_disk(tmp_path / "new" / "study", 1001)


def test_a_signal_ends_the_sweep(sweep_of, monkeypatch):
    sweep = sweep_of([run_of(name) for name in "abcd"])
    trainings = Trainings(monkeypatch, sweep)
    shown = []

    def show(sweep):
        shown.append(len(sweep.started))
        if len(shown) == 2:
            sweep.stop(15, None)

    sweep.view.show = show
    assert sweep.go() is True
    assert trainings.log == ["a", "b"]
