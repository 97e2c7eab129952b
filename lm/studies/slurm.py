"""Run what a study lacks as jobs of SLURM: arrays by submitit, every run once, whatever is killed.

A record in the folder of a run names its job before the job is submitted, and `squeue` lists those in the queue, so that a
second call finds the jobs of the first, after a kill too. The rest is in files, as in `lm.studies.engine`: a run is done or
failed by its folder, and the job locks it (`lm.studies.job`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lm.errors import UserError, check, one_line
from lm.outputs import Claim, replace_file
from lm.strict_json import dump_json
from lm.studies.engine import TRIES, View, handled, prepare_folder, title_of
from lm.studies.job import RECORD, Job, record_of, save_seconds
from lm.studies.plan import PlannedRun
from lm.studies.runs import State, ended, last_line, last_metrics, note_failure, reason_of, state_of

if TYPE_CHECKING:
    import submitit

PAUSES = (1.0, 10.0)  # seconds between two looks at the queue: after a change, and while nothing changes
LARGEST = 500  # jobs of an array; clusters allow 1,000 unless they are told otherwise
SUBMITTING = 60  # seconds that another sweep's sbatch may take: its record stands, its job is not listed yet
SITTINGS = 1_000_000  # of a run, each ended by the time limit


def check_cluster() -> None:
    """Raise UserError where no job can be submitted."""
    check(shutil.which("sbatch") is not None, "--backend=slurm: this machine has no sbatch; run it where jobs are submitted")
    found = importlib.util.find_spec("submitit") is not None
    check(found, "--backend=slurm needs the package submitit, which is not installed: pip install submitit")


@dataclass(frozen=True)
class Queued:
    """A run's job in the queue. `job`: its id, "" before SLURM lists it."""

    run: PlannedRun
    job: str
    state: str = "PENDING"
    reason: str = ""


@dataclass
class Cluster:
    """The runs of a study and their jobs; `plan` lists all runs that can be named by now.

    `cores`: of a job. `minutes`: its time limit, before which it saves and is requeued. `jobs`: that may run at a time, 0: any
    number. Whatever else sbatch takes comes from its own variables, such as SBATCH_ACCOUNT and SBATCH_GPUS.
    """

    folder: Path
    study: str
    plan: Callable[[Mapping[str, State]], Sequence[PlannedRun]]
    view: View
    cores: int = 1
    partition: str | None = None
    minutes: int = 60
    jobs: int = 0
    fields: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # in which arms differ (`study.differences`)
    runs: Sequence[PlannedRun] = ()
    queue: dict[str, Queued] = field(default_factory=dict)  # by the hash of the run
    failures: dict[str, int] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)  # last step before a job was lost
    own: set[str] = field(default_factory=set)  # names of what this process submitted
    told: set[str] = field(default_factory=set)  # jobs that were told to end, or whose hold was shown
    stopping: bool = False

    def __post_init__(self):
        self.folder = self.folder.absolute()
        check(
            "%" not in str(self.folder), f"--workdir={self.folder}: SLURM replaces '%' in names of files; name another folder"
        )
        logging.getLogger("submitit").setLevel(logging.ERROR)

    @property
    def started(self) -> list[Queued]:
        """Jobs that run."""
        return [one for one in self.queue.values() if one.state == "RUNNING"]

    @property
    def slots(self) -> Sequence[object]:
        """Places for runs: as many as may run at a time, otherwise as many as do."""
        return range(max(1, self.jobs or len(self.started)))

    def workdir(self, run: PlannedRun) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / run.hash

    def go(self) -> bool:
        """Run until nothing is left to do; return whether a signal ended it. Failed runs of earlier calls are tried again."""
        with handled(self.stop):
            pause, fresh = PAUSES[0], True
            while True:
                if fresh:
                    self.runs = self.plan(self.states)
                fresh = self.look()
                changed = self.end() if self.stopping else self.submit()
                self.view.show(self)
                if not self.queue and not fresh and (self.stopping or not self.waiting()):
                    return self.stopping
                pause = PAUSES[0] if fresh or changed else min(PAUSES[1], 1.5 * pause)
                self.rest(pause)

    def stop(self, number: int, frame: object) -> None:
        """Note a signal."""
        self.stopping = True

    def rest(self, seconds: float) -> None:
        """Wait until the next look at the queue, or for a signal."""
        last, stopping = time.monotonic() + seconds, self.stopping
        while time.monotonic() < last and self.stopping == stopping:
            time.sleep(0.25)
            self.view.show(self)

    # -- the queue ---------------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Read the queue and the states of the runs that are not settled; return whether a job has left the queue."""
        before = self.queue
        found = self.queue = self.queued()
        left = [one.run for digest, one in before.items() if one.job and digest not in found]
        for run in left:
            self.settle(run)
        for run in self.runs:
            if run.hash in found:
                self.states[run.hash] = "running" if found[run.hash].state == "RUNNING" else "missing"
            elif self.states.get(run.hash) != "done":
                state = state_of(self.workdir(run))
                # A failure of an earlier call is tried again.
                again = state == "failed" and self.failures.get(run.hash, 0) < TRIES
                self.states[run.hash] = "missing" if again else state
        for one in found.values():
            if "held" in one.reason.lower() and one.job not in self.told:
                self.told.add(one.job)
                self.view.say(
                    f"held     {title_of(one.run)}: job {one.job} waits for `scontrol release {one.job}` ({one.reason})"
                )
        return bool(left)

    def queued(self) -> dict[str, Queued]:
        """Return the jobs of the runs in the queue, by the hash of the run."""
        open_runs = [run for run in self.runs if self.states.get(run.hash) != "done"]
        records = {run.hash: (run, record_of(self.workdir(run))) for run in open_runs}
        names = sorted({str(record["name"]) for _, record in records.values() if "name" in record})
        listed: dict[tuple[str, int], tuple[str, str, str]] = {}
        for part in portions(names):
            for row in self.asked(f"--name={','.join(part)}").splitlines():
                name, array, index, state, reason = row.split("|", 4)
                # An array of one is a plain job: it has no index.
                job = f"{array}_{index}" if index.isdigit() else array
                listed[name, int(index) if index.isdigit() else 0] = (job, state, reason)
        found = {}
        for digest, (run, record) in records.items():
            key = (str(record.get("name")), int(record.get("index", 0)))
            if key in listed:
                found[digest] = Queued(run, *listed[key])
            elif "job" not in record and key[0] not in self.own and time.time() - record.get("time", 0) < SUBMITTING:
                found[digest] = Queued(run, "")
        return found

    def asked(self, *arguments: str) -> str:
        """Return what squeue lists, once it answers: while its controller starts anew, jobs are neither lost nor submitted."""
        silent = False
        while True:
            line = ["squeue", "--noheader", "--array", "--format=%j|%F|%K|%T|%r", *arguments]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout
            if not silent:
                self.view.say(f"waiting for SLURM: {one_line(done.stderr)}")
            silent = True
            self.rest(PAUSES[1])

    def settle(self, run: PlannedRun) -> None:
        """Say how a run did whose job has left the queue, and count a failure."""
        workdir, title = self.workdir(run), title_of(run)
        state, step = state_of(workdir), last_metrics(workdir).get("step", 0)
        if state == "done":
            self.view.say(f"done     {title}")
        elif state == "missing" and (self.stopping or record_of(workdir).get("cancelled")):
            pass
        elif state == "missing" and step > self.reached.get(run.hash, 0):
            self.reached[run.hash] = step  # a cluster that cancels what it preempts: no failure while the run gets on
            self.view.say(f"again    {title}: its job ended at step {step}")
        elif state != "running":
            if state == "missing":
                self.note_loss(workdir)
            tries = self.failures[run.hash] = self.failures.get(run.hash, 0) + 1
            self.view.say(f"{'failed' if tries >= TRIES else 'again':8} {title}: {reason_of(workdir)}")

    def note_loss(self, workdir: Path) -> None:
        """Record the failure of a run whose job ended without one, such as a job that was killed for its memory."""
        job = str(record_of(workdir).get("job", ""))
        log = last_line(self.folder / "jobs" / f"{job}_0_log.out")
        with (workdir / "console.txt").open("a", encoding="utf-8") as console:
            console.write(f"error: job {job} ended before the run did; its last line: {log or '(none)'}\n")
        note_failure(workdir, 1)

    def waiting(self) -> bool:
        """Return whether a run is in another process's hands, or can still be submitted."""
        return any(self.states[run.hash] == "running" or self.ready(run) for run in self.runs)

    def ready(self, run: PlannedRun) -> bool:
        """Return whether a run may be submitted: it is missing, not queued, and those it starts from are done."""
        missing = self.states[run.hash] == "missing" and run.hash not in self.queue
        return missing and all(self.states.get(one) == "done" for one in run.after)

    # -- submission and end ------------------------------------------------------------------------------------------------

    def submit(self) -> bool:
        """Submit the runs that are ready as an array; return whether there are any."""
        # The array bounds its own jobs; what comes later, a next stage or a second try, must fit beside those in the queue.
        most = max(0, self.jobs - len(self.queue)) if self.jobs and self.queue else LARGEST
        if not most or not any(map(self.ready, self.runs)):
            return False
        jobs = self.folder / "jobs"
        jobs.mkdir(exist_ok=True)
        try:
            claim = Claim(jobs, "")
        except UserError:  # another sweep submits; the next look finds its jobs
            return False
        with claim:
            self.queue = self.queued()
            chosen = [run for run in self.runs if self.ready(run) and not ended(self.workdir(run))][: min(most, LARGEST)]
            if chosen:
                self.submit_array(chosen)
        return bool(chosen)

    def submit_array(self, runs: Sequence[PlannedRun]) -> None:
        """Submit runs as one array; raises UserError where SLURM refuses while nothing else is queued."""
        name = f"{re.sub(r'[^A-Za-z0-9.-]', '-', self.study)[:40]}-{secrets.token_hex(4)}"
        self.own.add(name)
        for index, run in enumerate(runs):
            prepare_folder(run, self.workdir(run), self.study, self.fields)
            (self.workdir(run) / "failed.json").unlink(missing_ok=True)
            self.reached.setdefault(run.hash, last_metrics(self.workdir(run)).get("step", 0))
            self.keep(run, {"name": name, "index": index, "time": time.time()})
        os.environ.pop("SBATCH_JOB_NAME", None)  # it would replace the name by which the jobs are found
        work = Job(str(self.folder), name, self.cores, self.minutes)
        try:
            jobs = self.executor(name, len(runs)).map_array(work, [run.hash for run in runs])
        except (RuntimeError, OSError) as error:
            for run in runs:
                (self.workdir(run) / RECORD).unlink(missing_ok=True)
            line = f"SLURM did not take {len(runs)} jobs: {one_line(str(error))}"
            if not self.queue:
                raise UserError(line) from None
            return self.view.say(line)
        for index, (run, job) in enumerate(zip(runs, jobs, strict=True)):
            self.keep(run, {"name": name, "index": index, "time": time.time(), "job": job.job_id})
            self.queue[run.hash] = Queued(run, job.job_id)
        self.view.say(f"queued   {len(runs)} run{'s' * (len(runs) != 1)} as job {jobs[0].job_id.partition('_')[0]}")

    def executor(self, name: str, count: int) -> submitit.SlurmExecutor:
        """Return submitit's executor of an array of `count` jobs."""
        import submitit

        made = submitit.SlurmExecutor(folder=self.folder / "jobs", max_num_timeout=SITTINGS)
        made.update_parameters(
            job_name=name,
            partition=self.partition,
            time=self.minutes,
            nodes=1,
            ntasks_per_node=1,
            cpus_per_task=self.cores,
            array_parallelism=self.jobs or count,
            signal_delay_s=save_seconds(self.minutes),
            stderr_to_stdout=True,
            srun_args=[f"--cpus-per-task={self.cores}"],  # which srun does not take from its job since SLURM 22.05
            additional_parameters={"requeue": True},  # after the loss of a node, whatever the cluster's default
        )
        return made

    def keep(self, run: PlannedRun, record: Mapping[str, object]) -> None:
        """Write the record of a run's job."""
        replace_file(self.workdir(run) / RECORD, dump_json(record) + "\n")

    def end(self) -> bool:
        """Cancel the jobs that wait and end those that run after their step, saved; return whether any were left to tell."""
        waiting = [one.job for one in self.queue.values() if one.job and one.state == "PENDING"]
        self.told -= set(waiting)  # requeued meanwhile
        fresh = [one for one in self.started if one.job not in self.told]
        for one in self.queue.values():
            # Before the signal, which a job that is just starting misses: it reads its record then.
            if not (record := record_of(self.workdir(one.run))).get("cancelled"):
                self.keep(one.run, {**record, "cancelled": True})
        for part in portions(waiting):
            subprocess.run(["scancel", "--state=PENDING", *part], capture_output=True, check=False)
        # Not a plain scancel, after which SLURM kills a job whose save takes longer than the cluster's KillWait.
        for part in portions([one.job for one in fresh]):
            subprocess.run(["scancel", "--signal=TERM", *part], capture_output=True, check=False)
        if waiting or fresh:
            self.view.say(
                f"stopping: jobs that wait are cancelled ({len(waiting)}), those that run save and end ({len(fresh)})"
            )
        self.told |= {one.job for one in fresh}
        return bool(waiting or fresh)


def portions(items: Sequence[str], most: int = 200) -> Iterable[Sequence[str]]:
    """Divide the arguments of a command into parts that a command line can hold."""
    return (items[k : k + most] for k in range(0, len(items), most))
