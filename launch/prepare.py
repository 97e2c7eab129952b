"""Prepare a corpus by several processes of this machine, or by an array of jobs on a SLURM cluster.

    python -m launch.prepare --config=gpt_nano:text='books/*.txt' --jobs=2
    python -m launch.prepare --config=gpt_nano:text='books/*.txt' --jobs=64 --backend=slurm --minutes=240

Process k of N is `python -m lm.prepare --shard=k/N` with the same flags; whoever prepares the last shard joins them. On a
cluster LM_CACHE must be a folder that all nodes share; a job that is preempted or reaches its time limit is queued again and
continues. The same command again prepares what is missing.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from lm.config import Config
from lm.errors import check
from lm.flags import run
from lm.prepare import data_from, define_flags
from lm.studies.job import save_seconds
from lm.studies.slots import Slot, available_cores
from lm.studies.slurm import SITTINGS, check_cluster

if TYPE_CHECKING:
    import submitit

HANDED_ON = ("config", "text", "data", "tokenizer", "vocab", "validation", "cache")


class Work:
    """The work of job k of an array: a portion of the shards; submitit pickles it."""

    def __init__(self, arguments: list[str], jobs: int):
        self.arguments, self.jobs = arguments, jobs

    def __call__(self, k: int) -> None:
        # SIGUSR2, which announces the time limit, goes to all processes of a job: only this one may answer it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
        try:
            process = subprocess.Popen([*self.arguments, f"--shard={k}/{self.jobs}"])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if status := process.wait():
            sys.exit(status)

    def checkpoint(self, k: int) -> submitit.helpers.DelayedSubmission:
        """Queue the same work again: its journal knows where to continue."""
        import submitit

        return submitit.helpers.DelayedSubmission(Work(self.arguments, self.jobs), k)


def submit(arguments: list[str], jobs: int) -> str:
    """Submit an array of jobs; return its id."""
    import submitit

    flag = flags.FLAGS
    executor = submitit.SlurmExecutor(folder=Path(flag.logs).absolute(), max_num_timeout=SITTINGS)
    executor.update_parameters(
        job_name="prepare",
        partition=flag.partition,
        time=flag.minutes,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=flag.cores,
        array_parallelism=jobs,
        signal_delay_s=save_seconds(flag.minutes),
        stderr_to_stdout=True,
        srun_args=[f"--cpus-per-task={flag.cores}"],
        additional_parameters={"requeue": True},
    )
    return executor.map_array(Work(arguments, jobs), range(1, jobs + 1))[0].job_id.partition("_")[0]


def here(arguments: list[str], jobs: int) -> int:
    """Run all portions on this machine, each on cores of its own; return the first status that is not 0."""
    cores = available_cores()
    check(jobs <= len(cores), f"--jobs={jobs}: this machine offers {len(cores)} cores to the process")
    slots = [Slot(",".join(map(str, cores[k::jobs]))) for k in range(jobs)]
    lines = [[*slot.command("lm.prepare", *arguments), f"--shard={k}/{jobs}"] for k, slot in enumerate(slots, 1)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes = [subprocess.Popen(line, stdout=subprocess.DEVNULL) for line in lines]
    try:
        statuses = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()
    failed = next((status for status in statuses if status), 0)
    return 128 - failed if failed < 0 else failed


def main(overrides: list[tuple[str, str]]) -> None:
    """Start the processes of the flags; on this machine wait for them, and print the summary."""
    flag = flags.FLAGS
    data_from(overrides).source.open()  # raises for a wrong path before the processes start
    arguments = [flag[name].serialize() for name in HANDED_ON if flag[name].present]
    arguments += [f"--config.{name}={value}" for name, value in overrides]
    if flag.backend == "slurm":
        check_cluster()
        job = submit(Slot().command("lm.prepare", *arguments), flag.jobs)
        return print(f"queued {flag.jobs} portions as job {job}; their lines are in {flag.logs}, the last one joins the shards")
    if status := here(arguments, flag.jobs):
        sys.exit(status)
    subprocess.run(Slot().command("lm.prepare", *arguments), check=True)


def define() -> None:
    """Define the flags of this command and those of lm.prepare, but for --shard, which it sets, and --verify."""
    define_flags()
    for name in ("shard", "verify"):
        delattr(flags.FLAGS, name)
    flags.DEFINE_integer("jobs", 2, "processes, each with a portion of the shards", 1, 100_000)
    flags.DEFINE_enum("backend", "local", ["local", "slurm"], "run on this machine, or as jobs of a cluster")
    flags.DEFINE_integer("cores", 1, "cores of a job of a cluster", 1, 10_000)
    flags.DEFINE_integer("minutes", 60, "time limit of a job, after which it is queued again", 1, 1_000_000)
    flags.DEFINE_string("partition", None, "partition of the cluster; whatever else sbatch takes is in its own variables")
    flags.DEFINE_string("logs", "runs/prepare", "folder for the output of jobs")


if __name__ == "__main__":
    define()
    run(main, Config)
