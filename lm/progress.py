"""What a run tells of itself: what is about to happen, the means of each log interval, the summary."""

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from typing import Any

import jax

from lm.config import Config
from lm.data.types import labelled
from lm.errors import UserError
from lm.fields import chosen
from lm.models import flops
from lm.training import metrics, parameters
from lm.training.state import TrainState
from lm.training.stopping import Watch
from lm.training.writers import Writers


def announce(run: Any, abstract: TrainState, start: int, say: Any) -> None:
    """Say what is about to run, and on a CPU how long it will take when that is long."""
    config = run.config
    per_step = config.batch * config.objective.records.tokens
    unit = "examples" if labelled(config.data.source) else "tokens"
    mesh = " x ".join(f"{n} {a}" for a, n in run.mesh.shape.items() if n > 1) or "1"
    say(
        f"{type(config.objective).__name__.lower()}: {flops.parameter_count(abstract.params) / 1e6:,.1f} M parameters, "
        f"{sum(len(stream) for _, stream in run.corpus.train):,} training {unit} ({run.corpus.name}), {config.steps:,} "
        f"steps of {per_step:,} tokens, {run.mesh.devices.size} {jax.devices()[0].device_kind} device(s), mesh {mesh}"
    )
    moving, still = (flops.parameter_count(part) for part in parameters.split(config.optimizer.groups, abstract.params))
    if still:
        say(f"trains {moving:,} of {moving + still:,} parameters ({moving / (moving + still):.2%})")
    if start:
        say(f"going on from step {start}")
    if jax.default_backend() == "cpu":
        work = (config.steps - start) * config.batch * config.objective.flops()
        hours = work / (0.5 * flops.matmul_rate()) / 3600
        if hours > 2:
            say(
                f"this CPU will need about {f'{hours / 24:,.0f} days' if hours > 72 else f'{hours:.0f} hours'} for it; "
                "configs/gpt_nano.py learns in minutes, and the same command runs on a GPU or TPU"
            )


def changes(old: Any, new: Any, path: str = "") -> list[str]:
    """Name the fields in which two configs differ: `optimizer.lr: 0.001 -> 0.0003`."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        return [] if old == new else [f"{path}: {old} -> {new}"]
    found = []
    for field in chosen(old):
        inner = f"{path}.{field.name}" if path else field.name
        found += changes(getattr(old, field.name), getattr(new, field.name), inner)
    return found


def summary(run: Any, abstract: TrainState, steps: int) -> dict[str, Any]:
    """Gather what summary.json holds beside the last metrics.

    `tokens_per_second` is of the whole run, over all its seconds: start, compilation, evaluations and saves are in it. The
    last logged `train/tokens_per_second` beside it is of steps alone (`Meter`), as `launch.bench` measures it.
    """
    tokens, seconds = steps * run.config.batch * run.config.objective.records.tokens, run.seconds()
    corpus = run.corpus
    return {
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "params": flops.parameter_count(abstract.params),
        "corpus": {"name": corpus.name, "bytes": corpus.bytes, "sha256": corpus.sha256},
    }


BUILT = "/jax/core/compile/backend_compile_duration"  # of a program, or of reading it from the cache


@functools.cache
def events() -> Counter[str]:
    """Count what jax reports of itself since the first call; a run that goes on building has arrays of ever new shapes."""
    found: Counter[str] = Counter()
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: found.update([event]))
    return found


NOTHING = 0.5  # of a step's usual time: less is no time that a step took


class Meter:
    """Adds the sums of steps up and writes their means with the rates at every log step.

    A rate is the tokens of steps over the time spent on them: from one step's result to the next one's, without pauses (an
    evaluation, a save, samples). The first step of a sitting is left out: it holds what is done once. A device that works
    while the host waits for it (a CPU) is done with a step before the result of the step before is looked at; of two results
    that are there at one moment the second counts with the next interval, and a log that would have no interval has no rate.
    Around looks a single step's rate may so be off by a step; over several it is right.
    """

    def __init__(self, config: Config, writers: Writers, watch: Watch):
        self.config, self.writers, self.watch = config, writers, watch
        self.total: metrics.Host = {}
        self.tokens = config.batch * config.objective.records.tokens
        peak = flops.peak()
        work = config.objective.flops() / config.objective.records.tokens
        self.share = work / (peak * jax.device_count()) if peak else None
        self.mark: float | None = None  # when the last result was there, moved on by pauses
        self.seconds, self.steps, self.carried = 0.0, 0, 0  # since the last rate
        self.usual, self.built = 0.0, time.monotonic()  # seconds a step, of the last rate or of the first step
        self.programs = events()[BUILT]

    def add(self, step: int, sums: Any) -> None:
        """Count one finished step; raises UserError after `skip_limit` non-finite ones in a row."""
        self.total = metrics.add(self.total, sums)
        skipped = int(jax.device_get(sums["skipped"][0]))
        self.clock(time.monotonic())
        if skipped >= self.config.skip_limit:
            raise UserError(
                f"the loss or its gradient was not finite for {skipped} steps in a row, up to step {step}; lower "
                "optimizer.lr, lengthen schedule.warmup or set optimizer.clip. The last checkpoint is as it was"
            )
        if step % self.config.every.log == 0 or step == self.config.steps:
            self.write(step)

    def clock(self, now: float) -> None:
        """Count the time up to a result, and the steps that it was spent on."""
        if self.mark is None:
            self.mark, self.usual = now, now - self.built
            return
        elapsed, self.carried = now - self.mark, self.carried + 1
        usual = self.seconds / self.steps if self.steps else self.usual
        if self.carried > 1 or elapsed > NOTHING * usual:  # never two empty ones in a row
            self.seconds, self.steps, self.carried = self.seconds + elapsed, self.steps + self.carried, 0
            self.mark = now

    def write(self, step: int) -> None:
        """Write the means since the last time."""
        values = metrics.means(self.total, "train")
        if self.steps and self.seconds > 0:
            self.usual = self.seconds / self.steps
            values["train/tokens_per_second"] = self.tokens / self.usual
            if self.share:
                values["train/mfu"] = self.tokens / self.usual * self.share
            self.seconds, self.steps = 0.0, 0
        values["train/programs"] = events()[BUILT] - self.programs
        self.writers.write(step, values)
        self.total = {}

    @contextlib.contextmanager
    def pause(self):
        """Leave out of the rates what happens inside."""
        began = time.monotonic()
        yield
        if self.mark is not None:
            self.mark += time.monotonic() - began
