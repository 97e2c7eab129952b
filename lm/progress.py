"""A run while it trains: its constants, its announcement, the means of each log interval, its summary."""

import contextlib
import dataclasses
import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lm.config import Config
from lm.data.corpus.corpus import Corpus
from lm.data.types import labelled
from lm.errors import UserError
from lm.evaluation.held_out import HeldOut
from lm.fields import chosen
from lm.models import flops
from lm.runs import digest_of
from lm.training import metrics, parameters
from lm.training.checkpoint import Checkpoints
from lm.training.state import TrainState
from lm.training.stopping import Watch
from lm.training.writers import Writers


class Spent:
    """Seconds of one sitting by use; `within` counts time once, for the innermost use, so they add up to the wall time."""

    def __init__(self, began: float):
        self.mark, self.uses = began, ["start"]
        self.seconds: dict[str, float] = defaultdict(float)

    def turn(self) -> None:
        """Attribute the time since the last turn to the current use."""
        now = time.monotonic()
        self.seconds[self.uses[-1]] += now - self.mark
        self.mark = now

    @contextlib.contextmanager
    def within(self, use: str) -> Iterator[None]:
        self.turn()
        self.uses.append(use)
        try:
            yield
        finally:
            self.turn()
            self.uses.pop()

    def each(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield the items; the time of waiting for them is input. The start ends here."""
        self.turn()
        end, self.uses = object(), ["idle"]
        while True:
            with self.within("input"):
                item = next(items, end)
            if item is end:
                return
            yield item

    def account(self) -> dict[str, float]:
        """Return the seconds up to now: `time/USE`; idle is the time of no use."""
        self.turn()
        uses = ("start", "compile", "input", "step", "looks", "saves", "idle")
        return {f"time/{use}": round(self.seconds[use], 3) for use in uses}


@dataclass(frozen=True)
class Run:
    """The constants of one sitting of a run, while the state changes."""

    config: Config  # resolved
    workdir: Path
    corpus: Corpus
    mesh: jax.sharding.Mesh
    checkpoints: Checkpoints
    held_out: HeldOut | None
    tasks: Mapping[str, Any]  # name -> lm.evaluation.subject.Task
    batch: Mapping[str, jax.ShapeDtypeStruct]
    lead: bool  # process 0, which alone prints and writes
    began: float  # time.monotonic() less the seconds of earlier sittings
    spent: Spent

    def seconds(self) -> float:
        """Return the seconds of all sittings."""
        return time.monotonic() - self.began

    def notes(self, watch: Watch, looked: bool) -> dict[str, Any]:
        """Return the notes of a checkpoint; `looked`: the evaluation of its step is complete."""
        notes = {"objective": digest_of(self.config.objective), "looked": looked, "seconds": self.seconds()}
        return notes | watch.notes() | self.corpus.identity()


def announce(run: Run, abstract: TrainState, start: int, say: Callable[[str], None]) -> None:
    """Print size, data, steps and mesh of the run, and on a CPU the hours if it will take more than two."""
    config = run.config
    per_step = config.batch * config.objective.records.tokens
    unit = "examples" if labelled(config.data.source) else "tokens"
    mesh = " x ".join(f"{n} {a}" for a, n in run.mesh.shape.items() if n > 1) or "1"
    say(
        f"{type(config.objective).__name__.lower()}: {flops.parameter_count(abstract.params) / 1e6:,.1f} M parameters, "
        f"{sum(len(stream) for _, stream in run.corpus.train):,} training {unit} ({run.corpus.name}), {config.steps:,} "
        f"steps of {per_step:,} tokens, {run.mesh.devices.size} {jax.devices()[0].device_kind} device(s), mesh {mesh}"
    )
    # With LoRA or frozen groups the size of the network says little about the memory of the optimizer.
    trained, frozen = (flops.parameter_count(part) for part in parameters.split(config.optimizer.groups, abstract.params))
    if frozen:
        say(f"trains {trained:,} of {trained + frozen:,} parameters ({trained / (trained + frozen):.2%})")
    if start:
        say(f"going on from step {start}")
    if jax.default_backend() == "cpu":
        work = (config.steps - start) * config.batch * config.objective.flops()
        hours = work / (0.5 * flops.matmul_rate()) / 3600  # a step reaches about half the rate of plain products
        if hours > 2:
            say(
                f"this CPU will need about {f'{hours / 24:,.0f} days' if hours > 72 else f'{hours:.0f} hours'} for it; "
                "configs/gpt_nano.py learns in minutes, and the same command runs on a GPU or TPU"
            )


def profile(run: Run, count: int) -> None:
    """Trace `Config.profile` steps after the first ten of a sitting, for TensorBoard or Perfetto."""
    if run.config.profile and count == 11:
        jax.profiler.start_trace(run.workdir / "profile")
    elif run.config.profile and count == 11 + run.config.profile:
        jax.profiler.stop_trace()


def changes(old: Any, new: Any, path: str = "") -> list[str]:
    """List the fields in which two configs differ: `optimizer.lr: 0.001 -> 0.0003`."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        return [] if old == new else [f"{path}: {old} -> {new}"]
    lines = []
    for field in chosen(old):
        inner = f"{path}.{field.name}" if path else field.name
        lines += changes(getattr(old, field.name), getattr(new, field.name), inner)
    return lines


COMPILED = "/jax/core/compile/backend_compile_duration"  # of a program, or of reading it from the cache
NEGLIGIBLE = 0.5  # share of a step's usual time below which an interval counts as empty


@functools.cache
def events() -> Counter[str]:
    """Count jax's monitoring events since the first call; a compile count that keeps rising shows ever new array shapes."""
    counts: Counter[str] = Counter()
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: counts.update([event]))
    return counts


class Meter:
    """Sums the metrics of steps and writes their means and rates at every log step.

    A rate is tokens over the time from one step's result to the next, pauses (evaluations, saves, samples) excluded, and the
    first step of a sitting too, which compiles. On a CPU, where the host waits for the device, a step may finish before the
    previous result is fetched: of two results at one moment the second counts with the next interval, and a log without an
    interval has no rate. A rate over a single step beside a pause may therefore be off by a step; over several it is right.
    """

    def __init__(self, config: Config, writers: Writers, watch: Watch):
        self.config, self.writers, self.watch = config, writers, watch
        self.total: metrics.Host = {}
        self.tokens = config.batch * config.objective.records.tokens
        peak = flops.peak()
        work = config.objective.flops() / config.objective.records.tokens
        self.share = work / (peak * jax.device_count()) if peak else None
        self.mark: float | None = None  # time of the last result, moved on by pauses
        self.seconds, self.steps, self.carried = 0.0, 0, 0  # since the last rate
        self.usual, self.built = 0.0, time.monotonic()  # seconds a step: of the last rate, at first of the first step
        self.programs = events()[COMPILED]

    def add(self, step: int, sums: metrics.Sums) -> None:
        """Add one finished step; raises UserError after `skip_limit` non-finite ones in a row."""
        self.total = metrics.add(self.total, sums)
        # A counter of the state, not a sum: it is the length of the current series of skipped steps.
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
        """Attribute the time up to a result to the steps that it was spent on."""
        # The first result starts the clock: the time before it holds compilation.
        if self.mark is None:
            self.mark, self.usual = now, now - self.built
            return
        elapsed, self.carried = now - self.mark, self.carried + 1
        usual = self.seconds / self.steps if self.steps else self.usual
        if self.carried > 1 or elapsed > NEGLIGIBLE * usual:  # never two empty intervals in a row
            self.seconds, self.steps, self.carried = self.seconds + elapsed, self.steps + self.carried, 0
            self.mark = now

    def write(self, step: int) -> None:
        """Write the means and the rate since the last log."""
        values = metrics.means(self.total, "train")
        if self.steps and self.seconds > 0:
            self.usual = self.seconds / self.steps
            values["train/tokens_per_second"] = self.tokens / self.usual
            if self.share:
                # A CPU has no peak in a data sheet: its share is that of the matrix products that this machine was seen to do.
                name = "train/matmul_share" if jax.default_backend() == "cpu" else "train/mfu"
                values[name] = self.tokens / self.usual * self.share
            self.seconds, self.steps = 0.0, 0
        values["train/programs"] = events()[COMPILED] - self.programs
        self.writers.write(step, values)
        self.total = {}

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time spent inside from the rates."""
        began = time.monotonic()
        yield
        if self.mark is not None:
            self.mark += time.monotonic() - began
