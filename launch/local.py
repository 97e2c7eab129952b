"""Run one command as several processes of one job on this machine, again from its last save where one of them dies.

    python -m launch.local --processes=2 -- python -m lm.main --config=configs/gpt_nano.py --workdir=runs/two

Each process gets --distributed=127.0.0.1:PORT,COUNT,INDEX; its lines begin with its index. When a process is killed, the
others exit with status 75, and all start again, up to --restarts times, on another port; an error (status 1 or 2) would come
again, and ends the job. SIGTERM goes to all, Ctrl-C reaches all by itself. The exit status is that of the first process that
fails.
"""

import argparse
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

PATIENCE = 60  # seconds that the others have to end by themselves after a failure
TEMPORARY = 75  # EX_TEMPFAIL, the status of `lm.errors.Temporary`


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prefix(index: int, source: IO[str], target: IO[str]) -> None:
    """Hand on the lines of a process; a thread."""
    for line in source:
        target.write(f"{index}: {line}")
        target.flush()


class Stopping:
    """Hands SIGTERM on to the processes of the current sitting, and remembers it."""

    def __init__(self) -> None:
        self.job: list[subprocess.Popen] = []
        self.asked = False
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all

    def stop(self, *_: object) -> None:
        self.asked = True
        for process in self.job:
            process.terminate()


def sitting(command: Sequence[str], count: int, stopping: Stopping) -> list[int]:
    """Run the processes to their end; return their statuses in the order in which they ended, (-N: killed by signal N)."""
    place, threads = f"127.0.0.1:{free_port()},{count}", []
    stopping.job = []
    for index in range(count):
        # In UTF-8, whatever this machine's locale: the lines are those of our own commands.
        process = subprocess.Popen(
            [*command, f"--distributed={place},{index}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        stopping.job.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            threads.append(threading.Thread(target=prefix, args=(index, source, target)))
            threads[-1].start()
    if stopping.asked:  # while they were started
        stopping.stop()
    statuses: list[int] = []
    waiting, waited = list(stopping.job), 0.0
    while waiting:
        try:
            waiting[0].wait(0.2)
        except subprocess.TimeoutExpired:
            waited += 0.2 if any(statuses) else 0
        ended = [process for process in waiting if process.poll() is not None]
        waiting = [process for process in waiting if process not in ended]
        # A killed process first: the others end because of it.
        statuses += sorted(process.returncode for process in ended)
        if waited > PATIENCE:
            for process in waiting:
                process.kill()
    for thread in threads:
        thread.join()
    return statuses


def said(status: int) -> str:
    """Describe the end of a process."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def main() -> int:
    """Start, wait, start again where a process died; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--restarts", type=int, default=3, help="how often all start again after one died (default: 3)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if given.processes < 1 or given.restarts < 0 or not command:
        parser.error("give --processes of at least 1, --restarts of at least 0, and the command after --")
    stopping = Stopping()
    for restart in range(given.restarts + 1):
        try:
            failed = [status for status in sitting(command, given.processes, stopping) if status]
        except OSError as error:
            parser.error(f"{command[0]}: {error.strerror}")
        # An error in one process ends the others too, whatever their status: all must have died or lost a partner.
        dead = bool(failed) and all(status < 0 or status == TEMPORARY for status in failed)
        if not dead or stopping.asked or restart == given.restarts:
            break
        again = f"all {given.processes} start again and resume (restart {restart + 1} of {given.restarts})"
        print(f"launch.local: a process {said(failed[0])}; {again}", file=sys.stderr, flush=True)
    status = failed[0] if failed else 0
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
