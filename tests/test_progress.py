"""The rates of a run: over time spent on steps only, whatever is logged or looked at."""

import dataclasses
import json
import re
import statistics
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lm import progress
from lm.config import Every
from lm.progress import Meter, Spent
from tests.configs.tiny import config as tiny
from tests.processes import command

STEP = 0.5  # seconds of a step on the fake clock


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize("log", [1, 2, 5])
@pytest.mark.parametrize("look", [1, 2, 3, 7, 100])
def test_rates_are_of_steps_alone(monkeypatch, synchronous, log, look):
    """The loop of `lm.train` on a fake clock; a look takes 50 steps' time, a synchronous device computes on dispatch."""
    clock, ready = [100.0], {}
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.jax, "device_get", lambda x: x)

    def added(total, sums):
        clock[0] = max(clock[0], ready[sums["step"]]) + 1e-5
        return {}

    monkeypatch.setattr(progress.metrics, "add", added)
    monkeypatch.setattr(progress.metrics, "means", lambda total, name: {})
    config = dataclasses.replace(tiny(), steps=40, every=Every(log=log))
    written = {}
    meter = Meter(config, SimpleNamespace(write=lambda step, values: written.update({step: values})), None)
    clock[0] += 3.0  # what the first step waits for
    free, previous = clock[0], None
    for step in range(1, config.steps + 1):
        free = max(free, clock[0]) + STEP
        ready[step] = free
        clock[0] = free if synchronous else clock[0] + 1e-4
        sums = {"step": step, "skipped": [np.zeros(())]}
        if previous:
            meter.add(*previous)
        previous = step, sums
        if step % look == 0 or step == config.steps:
            meter.add(*previous)
            previous = None
            with meter.pause():
                clock[0] += 50 * STEP
    assert sorted(written) == list(range(log, 41, log))
    rates = [values["train/tokens_per_second"] for values in written.values() if "train/tokens_per_second" in values]
    assert len(rates) >= (19 if log == 1 else len(written) - 1)
    truth = meter.tokens / STEP
    assert max(rates) < 2.01 * truth  # a lone step between two looks, with the one before
    assert min(rates) > 0.49 * truth  # of the first ones, where a device computes on dispatch
    assert statistics.median(rates) == pytest.approx(truth, rel=0.01)


def test_the_account_of_time_adds_up(tmp_path):
    """To the wall time, as a clock around the run reads it; every use is in the log, the summary and the last lines."""
    began = time.monotonic()
    done = command("lm.main", "--config=tests/configs/tiny.py", f"--workdir={tmp_path}", "--config.steps=8")
    wall = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    spent = {name: value for name, value in summary.items() if name.startswith("time/")}
    assert set(spent) == {f"time/{use}" for use in ("start", "compile", "input", "step", "looks", "saves", "idle")}
    assert sum(spent.values()) == pytest.approx(summary["seconds"], rel=0.02, abs=0.06)  # seconds have one decimal
    assert sum(spent.values()) < wall
    assert min(spent[f"time/{use}"] for use in ("compile", "step", "looks", "saves")) > 0
    assert spent["time/idle"] < 0.2 * summary["seconds"]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: last[name] for name in spent} == spent
    assert re.search(r"time: start .* compile .* input .* step .* looks .* saves .* idle ", done.stdout)


def test_nested_uses_of_time_count_once(monkeypatch):
    clock = iter([1.0, 4.0, 6.0, 7.0, 9.0])
    spent = Spent(0.0)
    monkeypatch.setattr("lm.progress.time.monotonic", lambda: next(clock))
    with spent.within("looks"), spent.within("saves"):
        pass
    assert spent.account() == {
        "time/start": 1.0 + 2.0, "time/looks": 3.0 + 1.0, "time/saves": 2.0, "time/compile": 0, "time/input": 0,
        "time/step": 0, "time/idle": 0,
    }  # fmt: skip
