"""Run one command as several processes of one job on this machine.

    python -m launch.local --processes=2 -- python -m lm.main --config=configs/gpt_nano.py --workdir=runs/two

Each process gets --distributed=127.0.0.1:PORT,COUNT,INDEX; its lines begin with its index. SIGTERM goes to all, Ctrl-C
reaches all by itself. The exit status is that of the first process that fails.
"""

import argparse
import signal
import socket
import subprocess
import sys
import threading
from typing import IO

PATIENCE = 60  # seconds that the others have to end by themselves after a failure


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prefix(index: int, source: IO[str], target: IO[str]) -> None:
    """Hand on the lines of a process; a thread."""
    for line in source:
        target.write(f"{index}: {line}")
        target.flush()


def main() -> int:
    """Start, wait, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if given.processes < 1 or not command:
        parser.error("give --processes of at least 1, and the command after --")
    place = f"127.0.0.1:{free_port()},{given.processes}"
    job, threads = [], []
    for index in range(given.processes):
        full = [*command, f"--distributed={place},{index}"]
        try:
            process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        except OSError as error:
            parser.error(f"{command[0]}: {error.strerror}")
        job.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            threads.append(threading.Thread(target=prefix, args=(index, source, target)))
            threads[-1].start()
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in job])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all
    status, waiting, waited = 0, list(job), 0.0
    while waiting:
        try:
            waiting[0].wait(0.2)
        except subprocess.TimeoutExpired:
            waited += 0.2 if status else 0
        ended = [process for process in waiting if process.poll() is not None]
        waiting = [process for process in waiting if process not in ended]
        status = status or next((process.returncode for process in ended if process.returncode), 0)
        if waited > PATIENCE:
            for process in waiting:
                process.kill()
    for thread in threads:
        thread.join()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
