"""Forked children: each command in a process of its own that has jax imported already, and no backend yet.

`python -m tests.forks` is the server behind `tests.processes.command`: it reads one JSON request a line and answers with the
exit status.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

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
        sys.path.insert(0, os.getcwd())
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)

    return start


def fork(folder: Path, files: str, work: Callable[[], None], variables: dict[str, str], memory: int | None = None) -> int:
    """Start `work` in a child with the folder as its place; return the process id. Output goes to FILES.out and .err."""
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
            os.dup2(os.open(f"{files}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(variables)
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
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


def main() -> None:
    """Answer requests {"line", "folder", "files", "variables", "seconds"} until standard input ends."""
    preload()
    gc.collect()
    gc.freeze()  # a child's collector would otherwise write to, and so copy, every page it shares
    for line in sys.stdin:
        asked = json.loads(line)

        def work(asked=asked):
            for name in os.environ.keys() - asked["variables"].keys():
                del os.environ[name]
            command(asked["line"])()

        pid = fork(Path(asked["folder"]), asked["files"], work, asked["variables"])
        last = time.monotonic() + asked["seconds"]
        while not (found := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < last:
            time.sleep(0.01)
        end(pid)
        status = None if not found[0] else os.waitstatus_to_exitcode(found[1])
        if status is None:
            os.waitpid(pid, 0)
        print(json.dumps(status), flush=True)


if __name__ == "__main__":
    main()
