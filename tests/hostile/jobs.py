"""Hostile cases side by side, each a forked child with a bound on its memory and its processor time."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.forks import end, fork
from tests.hostile.case import Outcome

MEMORY = 12 << 30  # bytes of address space


def serve(tasks: Iterator, jobs: int) -> Iterator[tuple[object, Outcome]]:
    """Run (label, folder, work, variables, seconds) `jobs` at a time; yield each with what became of it, as they end."""
    running: dict[int, tuple] = {}
    tasks, more = iter(tasks), True
    while more or running:
        while more and len(running) < jobs:
            task = next(tasks, None)
            more = task is not None
            if more:
                label, folder, work, variables, seconds = task
                running[fork(folder, str(folder), work, variables, MEMORY)] = (label, folder, time.monotonic(), seconds)
        for pid, (label, folder, began, seconds) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            late = not done and (time.monotonic() - began > 2 * seconds or cpu_seconds(pid) > seconds)
            if late:
                end(pid)
                done, status = os.waitpid(pid, 0)
            if not done:
                continue
            end(pid)  # what it left behind
            del running[pid]
            out, err = (Path(f"{folder}.{ending}").read_text(errors="replace") for ending in ("out", "err"))
            yield label, Outcome(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - began, late)
        time.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a child: on a busy machine the clock on the wall says little."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
