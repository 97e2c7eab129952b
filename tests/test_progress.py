"""The rates of a run: over time spent on steps only, whatever is logged or looked at."""

import dataclasses
import statistics
from types import SimpleNamespace

import numpy as np
import pytest

from lm import progress
from lm.config import Every
from lm.progress import Meter
from tests.configs.tiny import config as tiny

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
