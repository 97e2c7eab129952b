"""The work of one job of a cluster: train one run of a study, save before the job's time is over, go on in the next sitting.

`lm.studies.slurm` submits it through submitit, which pickles it: attributes are plain values, the run is in its folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lm.errors import UserError
from lm.outputs import Claim
from lm.platform import has_accelerator
from lm.strict_json import load_json
from lm.studies.engine import spawn
from lm.studies.runs import ended, note_failure
from lm.studies.slots import Slot, available_cores

if TYPE_CHECKING:
    import submitit

RECORD = "job.json"  # in the folder of a run: name and index of its job
PATIENCE = 300  # seconds that a requeued job waits for the lock that a lost node still holds


class Job:
    """Trains the run of a hash in the study `folder`; `name`: of the submission, `minutes`: its time limit."""

    def __init__(self, folder: str, name: str, cores: int, minutes: int):
        self.folder, self.name, self.cores, self.minutes = folder, name, cores, minutes
        self.began = time.monotonic()
        self.process: subprocess.Popen | None = None
        self.saved: set[str] = set()
        self.stopped = False

    def __call__(self, digest: str) -> None:
        """Train until the run has ended; exit with status 1 where it fails."""
        workdir = Path(self.folder) / "runs" / digest
        self.began = time.monotonic()
        # Before the record is read: whoever cancels a job marks the record first and sends the signal then.
        signal.signal(signal.SIGTERM, self.note)
        claim = self.claim(workdir)
        if claim is None:
            return
        with claim:
            (workdir / "failed.json").unlink(missing_ok=True)
            self.saved = saves(workdir)
            self.process = self.start(workdir, claim)
            status = self.process.wait()
            if status and not self.stopped and not ended(workdir):
                note_failure(workdir, status)
                sys.exit(1)

    def claim(self, workdir: Path) -> Claim | None:
        """Lock the run; None where nothing is left to do, or where another process has it."""
        last = time.monotonic() + PATIENCE
        while self.wanted(workdir):
            with contextlib.suppress(UserError):
                claim = Claim(workdir / "arm.json", "")
                if self.wanted(workdir):  # the holder before may have ended the run
                    return claim
                claim.close()
            if time.monotonic() > last:
                print(f"{workdir} is in use by another process: this job gives way", flush=True)
                return None
            time.sleep(1)
        return None

    def wanted(self, workdir: Path) -> bool:
        """Return whether this job is to train the run: its record may name a later job, or say that it was cancelled."""
        # Where a file system has no locks, the record alone decides between the jobs of two sweeps.
        record = record_of(workdir)
        own = record.get("name") == self.name and not record.get("cancelled")
        return own and not self.stopped and not ended(workdir)

    def start(self, workdir: Path, claim: Claim) -> subprocess.Popen:
        """Start the training as a child that SIGUSR2, sent to all processes of a job before its time limit, does not kill."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
        try:
            return spawn(workdir, slot(self.cores), claim, session=False)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def note(self, number: int, frame: object) -> None:
        """Record a SIGTERM, which SLURM sends to the child as well."""
        self.stopped = True

    def checkpoint(self, digest: str) -> submitit.helpers.DelayedSubmission | None:
        """Have the child save and end, and return the same work for the next sitting; None where there is none.

        submitit calls it in its handler of SIGUSR2, while `__call__` waits and holds the lock of `Popen`: `waitid` takes none.
        """
        import submitit

        workdir = Path(self.folder) / "runs" / digest
        if self.process is not None:
            if not self.stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            # SLURM looks at limits once a minute. An earlier signal is a preemption, which says nothing about the limit.
            limit = time.monotonic() - self.began > 60 * self.minutes - save_seconds(self.minutes) - 65
            if limit and saves(workdir) == self.saved and not ended(workdir):
                with (workdir / "console.txt").open("a", encoding="utf-8") as console:
                    console.write(f"error: no step was saved before the limit of a job, --minutes={self.minutes}: raise it\n")
                note_failure(workdir, 1)
                return None
        return None if ended(workdir) else submitit.helpers.DelayedSubmission(self.again(), digest)

    def again(self) -> Job:
        """Return the same work without the state of this sitting."""
        return Job(self.folder, self.name, self.cores, self.minutes)


def record_of(workdir: Path) -> dict:
    """Return the record of a run's job, {} without one."""
    try:
        return load_json(workdir / RECORD, dict)
    except (OSError, UserError):
        return {}


def save_seconds(minutes: int) -> int:
    """Return the seconds before the end of a time limit at which a job is told to save."""
    return min(180, 15 * minutes)


def saves(workdir: Path) -> set[str]:
    """Return the steps of a run's checkpoints."""
    return {path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()}


def slot(cores: int) -> Slot:
    """Return as many cores as a run has, where a cluster that does not bind jobs to their cores offers all of a node's."""
    own = available_cores()
    if has_accelerator() or len(own) <= cores:
        return Slot()
    # Jobs of an array have consecutive ids: neighbours take different cores.
    first = cores * int(os.environ.get("SLURM_JOB_ID", "0"))
    return Slot(",".join(str(own[(first + k) % len(own)]) for k in range(cores)))
