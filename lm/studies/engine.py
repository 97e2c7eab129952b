"""Run what a study lacks on this machine: a run in each slot, every run once, whatever is killed.

The folder of a run is named by the hash of its config, so that a second call finds what is done. A run is started by the
process that holds the lock of its arm.json; the run inherits the lock, which therefore outlives a killed sweep and excludes a
second one until the run has ended. Runs resume bit by bit (`lm.train`), so nothing else has to be kept.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lm.config import to_json
from lm.errors import UserError
from lm.outputs import Claim, replace_file
from lm.strict_json import dump_json
from lm.studies.measures import environment
from lm.studies.plan import PlannedRun
from lm.studies.runs import State, ended, note_failure, state_of
from lm.studies.slots import Slot

TRIES = 2  # of a run that fails, in one call
PAUSE = 0.25  # seconds between two looks at the processes
STALE = 3.0  # seconds after which the folders of runs in other hands are read again


class Active(Protocol):
    """A run that trains."""

    @property
    def run(self) -> PlannedRun:
        """The run."""


class Shown(Protocol):
    """The part of a sweep that `View` shows."""

    @property
    def study(self) -> str:
        """Name of the study."""

    @property
    def runs(self) -> Sequence[PlannedRun]:
        """All runs that can be named by now."""

    @property
    def states(self) -> Mapping[str, State]:
        """State of each run, by its hash."""

    @property
    def started(self) -> Sequence[Active]:
        """Runs that train."""

    @property
    def slots(self) -> Sequence[object]:
        """Places for runs."""

    def workdir(self, run: PlannedRun) -> Path:
        """Return the folder of a run."""


class View(Protocol):
    """Shows a sweep: `lm.studies.live`."""

    def show(self, sweep: Shown) -> None:
        """Show the states, called every PAUSE."""

    def say(self, line: str) -> None:
        """Print a line that stays."""


@dataclass
class Started:
    """A run in a slot."""

    run: PlannedRun
    slot: Slot
    claim: Claim
    process: subprocess.Popen


@dataclass
class Sweep:
    """The runs of a study and those that this process has started; `plan` lists all runs that
    the states allow to name."""

    folder: Path
    study: str
    plan: Callable[[Mapping[str, State]], Sequence[PlannedRun]]
    slots: Sequence[Slot]
    memory: int
    view: View
    fields: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # in which arms differ (`study.differences`)
    runs: Sequence[PlannedRun] = ()
    started: list[Started] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    stopping: bool = False

    def workdir(self, run: PlannedRun) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / run.hash

    def go(self) -> bool:
        """Run until nothing is left to do; return whether a signal ended it. Failed runs of earlier calls are tried again."""
        with handled(self.stop):
            fresh, looked = True, 0.0
            try:
                while True:
                    if fresh:
                        self.runs = self.plan(self.states)
                    if fresh or time.monotonic() - looked > STALE:
                        self.look()
                        fresh, looked = False, time.monotonic()
                    if not self.stopping:
                        self.occupy()
                    self.view.show(self)
                    if not self.started and (self.stopping or not self.waiting()):
                        break
                    time.sleep(PAUSE)
                    fresh = self.reap()
            finally:
                self.stop(0, None)
                for one in self.started:
                    one.process.wait()
                    one.claim.close()
        return self.stopping

    def stop(self, number: int, frame: object) -> None:
        """End the runs after their step, saved; called for signals. 0, at the end: those that were told before end at once."""
        if number:
            self.stopping = True
        for one in self.started:
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGTERM if number else signal.SIGINT)

    def look(self) -> None:
        """Read the states of the runs that are not settled."""
        own = {one.run.hash for one in self.started}
        for run in self.runs:
            if run.hash in own:
                self.states[run.hash] = "running"
            elif self.states.get(run.hash) != "done":
                state = state_of(self.workdir(run))
                # A failure of an earlier call is tried again.
                tried = self.failures.get(run.hash, 0)
                self.states[run.hash] = "missing" if state == "failed" and tried < TRIES else state

    def waiting(self) -> bool:
        """Return whether a run is in another process's hands, or can still be started."""
        return any(self.states[run.hash] == "running" or self.ready(run) for run in self.runs)

    def ready(self, run: PlannedRun) -> bool:
        """Return whether a run may start: it is missing, and those it starts from are done."""
        return self.states[run.hash] == "missing" and all(self.states.get(one) == "done" for one in run.after)

    def occupy(self) -> None:
        """Start runs in the free slots, as far as memory allows; a run that needs more than all of it goes alone."""
        for run in self.runs:
            taken = [one.slot for one in self.started]
            free = [slot for slot in self.slots if slot not in taken]
            if not free:
                return
            used = sum(one.run.measure.peak_bytes for one in self.started)
            if self.ready(run) and (not self.started or used + run.measure.peak_bytes <= self.memory):
                self.start(run, free[0])

    def start(self, run: PlannedRun, slot: Slot) -> None:
        """Start a run, unless another sweep has just done so."""
        workdir = self.workdir(run)
        prepare_folder(run, workdir, self.study, self.fields)
        try:
            claim = Claim(workdir / "arm.json", "")
        except UserError:
            self.states[run.hash] = "running"
            return
        if ended(workdir):  # by the other sweep, between the look and the claim
            claim.close()
            self.states[run.hash] = "done"
            return
        (workdir / "failed.json").unlink(missing_ok=True)
        process = spawn(workdir, slot, claim)
        self.started.append(Started(run, slot, claim, process))
        self.states[run.hash] = "running"

    def reap(self) -> bool:
        """Collect the runs that have ended; return whether there are any."""
        over = [one for one in self.started if one.process.poll() is not None]
        for one in over:
            self.started.remove(one)
            workdir, status = self.workdir(one.run), one.process.returncode
            title = title_of(one.run)
            if ended(workdir):
                self.states[one.run.hash] = "done"
                self.view.say(f"done     {title}")
            elif status == 0 or self.stopping:  # a signal ended it after a save
                self.states[one.run.hash] = "missing"
            else:
                tries = self.failures[one.run.hash] = self.failures.get(one.run.hash, 0) + 1
                line = note_failure(workdir, status)
                self.states[one.run.hash] = "failed" if tries >= TRIES else "missing"
                self.view.say(f"{'failed' if tries >= TRIES else 'again':8} {title}: {line}")
            one.claim.close()
        return bool(over)


def title_of(run: PlannedRun) -> str:
    """Return the name of a run for people."""
    return f"{run.arm}, seed {run.seed}" + f", {run.stage}" * (run.stage != "train")


def prepare_folder(run: PlannedRun, workdir: Path, study: str, fields: Mapping[str, Mapping[str, str]]) -> None:
    """Make the folder of a run with its config and its arm; a folder that exists keeps its own."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "arm.json").exists():
        own = {path: row[run.arm] for path, row in fields.items()}
        label = {"study": study, "arm": run.arm, "seed": run.seed, "stage": run.stage, "fields": own}
        replace_file(workdir / "arm.json", dump_json(label, indent=1) + "\n")
    for name in ("asked.json", "config.json"):  # the second is resolved by the run
        if not (workdir / name).exists():
            replace_file(workdir / name, to_json(run.config))


def spawn(workdir: Path, slot: Slot, claim: Claim, session: bool = True) -> subprocess.Popen:
    """Start a run with its lock and its console in its folder, by default in a session of its own."""
    lock = [claim.file.fileno()] if claim.file else []
    with (workdir / "console.txt").open("a", encoding="utf-8") as console:
        return subprocess.Popen(
            slot.command("lm.main", f"--workdir={workdir}"),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment(slot),
            pass_fds=lock,
            start_new_session=session,  # Ctrl-C reaches the sweep alone, which ends its runs by SIGTERM
        )


@contextlib.contextmanager
def handled(handler: Callable[[int, object], None]):
    """Call `handler` for SIGINT and SIGTERM; a second signal raises KeyboardInterrupt."""
    seen = []

    def once(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        handler(number, frame)

    before = {number: signal.signal(number, once) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
