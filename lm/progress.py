"""What a run tells of itself: what is about to happen, the means of each log interval, the summary."""

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from typing import Any

import jax

from lm import flops, groups, metrics
from lm.config import Config
from lm.data.examples import labelled
from lm.errors import UserError
from lm.state import TrainState
from lm.stopping import Watch
from lm.writers import Writers


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
    moving, still = (flops.parameter_count(part) for part in groups.split(config.optimizer.groups, abstract.params))
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
    for field in (f for f in dataclasses.fields(old) if f.init):  # what `resolve` found is no choice
        inner = f"{path}.{field.name}" if path else field.name
        found += changes(getattr(old, field.name), getattr(new, field.name), inner)
    return found


def summary(run: Any, abstract: TrainState, steps: int) -> dict[str, Any]:
    """Gather what summary.json holds beside the last metrics."""
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


class Meter:
    """Adds the sums of steps up and writes their means with the rates at every log step."""

    def __init__(self, config: Config, writers: Writers, watch: Watch):
        self.config, self.writers, self.watch = config, writers, watch
        self.total: metrics.Host = {}
        self.steps, self.tokens = 0, config.batch * config.objective.records.tokens
        peak = flops.peak()
        work = config.objective.flops() / config.objective.records.tokens
        self.share = work / (peak * jax.device_count()) if peak else None
        self.mark, self.programs = time.monotonic(), events()[BUILT]

    def add(self, step: int, sums: Any) -> None:
        """Count one finished step; raises UserError after `skip_limit` non-finite ones in a row."""
        self.total = metrics.add(self.total, sums)
        self.steps += 1
        skipped = int(jax.device_get(sums["skipped"][0]))
        if skipped >= self.config.skip_limit:
            raise UserError(
                f"the loss or its gradient was not finite for {skipped} steps in a row, up to step {step}; lower "
                "optimizer.lr, lengthen schedule.warmup or set optimizer.clip. The last checkpoint is as it was"
            )
        if step % self.config.every.log == 0 or step == self.config.steps:
            self.write(step)

    def write(self, step: int) -> None:
        """Write the means since the last time."""
        seconds = max(time.monotonic() - self.mark, 1e-9)
        rate = self.steps * self.tokens / seconds
        values = metrics.means(self.total, "train") | {"train/tokens_per_second": rate}
        if self.share:
            values["train/mfu"] = rate * self.share
        values["train/programs"] = events()[BUILT] - self.programs
        self.writers.write(step, values)
        self.total, self.steps, self.mark = {}, 0, time.monotonic()

    @contextlib.contextmanager
    def pause(self):
        """Leave out of the rates what happens inside."""
        began = time.monotonic()
        yield
        self.mark += time.monotonic() - began
