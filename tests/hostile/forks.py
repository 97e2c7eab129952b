"""A server of forked children: each case in a process of its own that has jax imported already, and no backend yet."""

import atexit
import contextlib
import importlib
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import Outcome

MEMORY = 12 << 30  # bytes of address space
PRELOADED = (
    "jax flax.linen optax orbax.checkpoint tokenizers safetensors.numpy numpy jinja2 matplotlib.figure rich.table "
    "lm.flags lm.train lm.convert.convert lm.convert.runs lm.decode.prefill lm.evaluation.downstream lm.evaluation.registry"
)


def preload() -> None:
    """Import what every command imports; no module that defines flags, and nothing that starts a thread."""
    for name in PRELOADED.split():
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a library started a thread: forking is not safe"


def command(line: list[str]) -> Callable[[], None]:
    """Make what a child does of `module --flags`: what `python -m module --flags` does."""

    def start() -> None:
        sys.argv = line
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)

    return start


def fork(folder: Path, work: Callable[[], None], variables: dict[str, str], seconds: float) -> int:
    """Start `work` in a child with the folder as its place; return the process id. Output goes to FOLDER.out and .err."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(variables)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            work()
            status = 0
        except SystemExit as error:
            if error.code is not None and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def end(pid: int) -> None:
    """Kill a child and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


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
                running[fork(folder, work, variables, seconds)] = (label, folder, time.monotonic(), seconds)
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
