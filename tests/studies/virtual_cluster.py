"""A cluster of SLURM on this machine: its daemons on free ports, with a folder of their own, ended by their process ids."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.processes import environment

ROOT = Path(__file__).parent.parent.parent
# Node names are addresses: they resolve everywhere. No cgroups, no accounting, no systemd: processes are found by parentage.
CONFIG = """ClusterName=virtual
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
KillWait=20
{nodes}
PartitionName=low Nodes=127.0.0.[1-{count}] Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=127.0.0.[1-{count}] PriorityTier=10 PreemptMode=OFF State=UP
"""


class VirtualCluster:
    """Nodes of one core each, partitions `low` (preempted and requeued) and `high`."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.sweeps: list[subprocess.Popen] = []
        self.waiting: dict[str, float] = {}
        self.variables = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            # Jobs import this project and submitit as the tests do.
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        }

    def start(self) -> None:
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(self.count + 1)]
            ports = [one.getsockname()[1] for one in held]
        nodes = [
            f"NodeName=127.0.0.{k} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[k]} CPUs=1"
            for k in range(1, self.count + 1)
        ]
        text = CONFIG.format(folder=self.folder, ports=ports, nodes="\n".join(nodes), count=self.count)
        (self.folder / "slurm.conf").write_text(text)
        files = {"key": key, "socket": "munge.socket", "pid": "munged.pid", "log": "log/munged", "seed": "munge.seed"}
        where = {name: self.folder / path for name, path in files.items()}
        self.call(
            "munged", "--force", f"--key-file={where['key']}", f"--socket={where['socket']}", f"--pid-file={where['pid']}",
            f"--log-file={where['log']}", f"--seed-file={where['seed']}",
        )  # fmt: skip
        self.call("slurmctld", "-c", "-i")
        for k in range(1, self.count + 1):
            self.call("slurmd", "-N", f"127.0.0.{k}")
        self.until(lambda: len(self.pids()) == self.count + 2, 20)
        self.until(lambda: len(self.call("sinfo", "-hNp", "low", "-t", "idle", "-o%N").split()) == self.count, 20)

    def call(self, *line: str) -> str:
        """Return the output of a command of SLURM."""
        done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **self.variables})
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout

    def until(self, condition, seconds: float = 120) -> None:
        """Wait for a condition."""
        last = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < last, (self.jobs(), "waited in vain")
            time.sleep(0.2)

    def jobs(self) -> list[list[str]]:
        """Return id, array index, state and node of all jobs in the queue."""
        return [row.split("|") for row in self.call("squeue", "-hro%A|%K|%T|%N").splitlines()]

    def restart_requeued(self) -> None:
        """Start jobs that have waited for some seconds, as requeued ones do: SLURM would have them wait for two minutes."""
        waiting = {job for job, _, state, _ in self.jobs() if state == "PENDING"}
        self.waiting = {job: self.waiting.get(job, time.monotonic()) for job in waiting}
        for job, since in self.waiting.items():
            # Not at once: a node refuses the credential of a job within the second in which its last sitting was revoked.
            if time.monotonic() - since > 4:
                line = ["scontrol", "update", f"jobid={job}", "starttime=now"]
                subprocess.run(line, env={**os.environ, **self.variables}, capture_output=True)

    def pids(self) -> dict[str, int]:
        """Return the process ids of the daemons by their names."""
        found = {path.stem: path.read_text().strip() for path in self.folder.glob("*.pid")}
        return {name: int(text) for name, text in found.items() if text}

    def kill_node(self, number: int) -> None:
        """Kill the daemon of a node and all processes of its jobs at once, as a loss of power does."""
        # Daemons first, that of the node and those of its jobs: they would report how processes ended.
        jobs = [int(path.name) for path in Path("/proc").glob("[0-9]*") if self.owns(path, number)]
        daemons = {pid for pid in map(parent, jobs) if name_of(pid).startswith("slurmstepd")}
        for pid in (self.pids()[f"slurmd-127.0.0.{number}"], *daemons, *jobs):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        (self.folder / f"slurmd-127.0.0.{number}.pid").unlink()

    def owns(self, process: Path, number: int) -> bool:
        """Return whether a process belongs to a job of a node."""
        with contextlib.suppress(OSError):
            own = (process / "environ").read_bytes().split(b"\0")
            names = (f"SLURM_CONF={self.variables['SLURM_CONF']}", f"SLURMD_NODENAME=127.0.0.{number}")
            return all(name.encode() in own for name in names)
        return False

    def sweep(self, *arguments: object, folder: Path) -> subprocess.Popen:
        """Start `python -m launch.sweep` with --backend=slurm; its output goes to the file `out` of the folder."""
        line = [sys.executable, "-m", "launch.sweep", *map(str, arguments), "--backend=slurm", "--go"]
        with (folder / "out").open("a") as out:
            variables = {**environment(), **self.variables}
            self.sweeps.append(subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=variables))
        return self.sweeps[-1]

    def stop(self) -> None:
        """End sweeps, jobs and daemons."""
        for process in self.sweeps:
            process.kill()
            process.wait()
        with contextlib.suppress(AssertionError):
            self.call("scancel", f"--user={os.getuid()}", "--state=PENDING")
            self.call("scancel", f"--user={os.getuid()}", "--state=RUNNING", "--signal=KILL", "--full")
            self.call("scancel", f"--user={os.getuid()}")
            self.until(lambda: not self.jobs(), 40)
        daemons = self.pids().values()
        for pid in daemons:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        last = time.monotonic() + 15
        while any(map(alive, daemons)) and time.monotonic() < last:
            time.sleep(0.1)


def stat(pid: int) -> list[str]:
    """Return state, parent and more of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent(pid: int) -> int:
    """Return the parent of a process."""
    return int(stat(pid)[1])


def name_of(pid: int) -> str:
    """Return the name by which a process was started, or which it has given itself."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def alive(pid: int) -> bool:
    """Return whether a process runs: one that has ended may wait for its parent."""
    with contextlib.suppress(OSError):
        return stat(pid)[0] != "Z"
    return False


@contextlib.contextmanager
def virtual_cluster(folder: Path, count: int) -> Iterator[VirtualCluster]:
    """Run a cluster of `count` nodes in a folder."""
    cluster = VirtualCluster(folder, count)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
