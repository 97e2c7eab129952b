"""Multi-process jobs: the processes meet at process 0, watch each other while they work, and end together.

jax alone waits silently, notices a dead process after a minute or two, and then aborts the others with stack traces. Here the
processes meet before jax starts (`lm.rendezvous`) and keep their connections, so that the kernel reports a dead peer at once.
Every failure is one line. The exit status is 75 where a process died, as the same commands then resume the run, and 2 where
one of them ended with an error, which they would meet again.

`joined` is the entry; `Job` holds the connections and its two threads: `watch` reads the peers, `filter` cleans stderr.
"""

import atexit
import contextlib
import ctypes
import inspect
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.errors import Temporary, UserError, one_line, translate
from lm.rendezvous import Line, Place, Wait, arrive, gather, read_place

BROKEN = ("Gloo", "NCCL", "closed by peer", "reset by peer", "Socket closed", "oordination", "DEADLINE_EXCEEDED")
NOISE = b"oordination", b"grpc", b"GRPC"  # in log lines about a lost process, which `Job.end` reports better
FATAL = b"Polled an error from coordination service", b"JAX distributed service detected"  # stacks and an abort follow


class Job:
    """This process's view of its job: connections to its peers, and the one line that ends it."""

    def __init__(self, name: str, lines: dict[int, Line], workdir: Path | None):
        self.name, self.lines, self.workdir = name, lines, workdir
        self.stderr = os.dup(2)
        self.lock, self.ending = threading.Lock(), False
        self.watched = threading.Event()  # set: a process has died, and `end` is about to run
        self.handler: Any = None  # kept: ctypes does not

    def last_save(self) -> str:
        """Format the newest checkpoint on disk, as the advice how to resume."""
        folder = self.workdir / "checkpoints" if self.workdir else None
        steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()] if folder and folder.is_dir() else []
        return f"the last save is {folder}/{max(steps)}, the same commands go on from it" if steps else "nothing was saved yet"

    def end(self, reason: str, status: int = Temporary.status) -> None:
        """End this process with one line; from any thread."""
        with self.lock:  # never released: a second thread must not print a second line
            for line in self.lines.values():
                line.send(f"{'died' if status == Temporary.status else 'end'} {reason}")
            cursor = b"\x1b[?25h" if os.isatty(1) else b""  # a progress bar hides it
            os.write(self.stderr, cursor + f"error: {one_line(reason)}; {self.last_save()}\n".encode())
            os._exit(status)  # not sys.exit: the main thread may hang in a collective for minutes

    def watch(self) -> None:
        """Thread: read the peers' lines until each has sent `bye`; end this process where one fails or dies."""
        open_lines = dict(self.lines)
        while open_lines and not self.ending:
            for ready in select.select([*open_lines.values()], [], [], 1)[0]:
                index = next(i for i, line in open_lines.items() if line is ready)
                for message in ready.read():
                    word, _, text = message.partition(" ")
                    if word == "bye":
                        del open_lines[index]
                    elif word in ("died", "end", "error"):
                        self.watched.set()
                        said = f"process {index} of {self.name} ended: {text}" if word == "error" else text
                        self.end(said, Temporary.status if word == "died" else UserError.status)
                # Closed without `bye`: the kernel closes the connections of a process that is killed.
                if not ready.open and index in open_lines:
                    del open_lines[index]
                    if not self.ending:
                        self.watched.set()
                        self.end(f"process {index} of {self.name} died")

    def filter(self, source: int) -> None:
        """Thread: copy descriptor 2 to stderr, without the stack traces of jax's service about a lost process."""
        with os.fdopen(source, "rb", buffering=0) as pipe:
            rest = b""
            while data := pipe.read(65536):
                *lines, rest = (rest + data).split(b"\n")
                noisy = False  # to the end of one write: messages have several lines
                for line in lines:
                    noisy = noisy or any(part in line for part in NOISE)
                    if any(part in line for part in FATAL):
                        self.watched.set()
                    if not (self.watched.is_set() or noisy):
                        os.write(self.stderr, line + b"\n")
            os.write(self.stderr, rest)

    def aborted(self, number: int) -> None:
        """Handle SIGABRT, which jax's service raises in a thread of its own when it lost process 0."""
        if self.watched.wait(1):
            self.end(f"another process of {self.name} died")
        signal.signal(signal.SIGABRT, signal.SIG_DFL)  # another cause: the default action

    def guard(self) -> None:
        """Start both threads and take SIGABRT."""
        # C++ logs go to descriptor 2, so it is replaced itself; Python's stderr keeps the original.
        source, sink = os.pipe()
        os.dup2(sink, 2)
        os.close(sink)
        sys.stderr = os.fdopen(os.dup(self.stderr), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        # The callback runs in the thread that aborts. Python's own handlers would wait for the main thread.
        self.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self.aborted)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self.handler)
        threading.Thread(target=self.filter, args=(source,), daemon=True).start()
        threading.Thread(target=self.watch, daemon=True).start()

    def leave(self, error: BaseException | None) -> None:
        """Send the peers how this process ends; after an error, exit without jax's wait for them."""
        self.ending = error is None
        word = "died" if isinstance(error, Temporary) else "error"
        for line in self.lines.values():
            line.send("bye" if error is None else f"{word} {translate(error) or type(error).__name__}")
        if error is not None:
            known = error.status if isinstance(error, UserError) else 2 if translate(error) else 1
            status = 130 if isinstance(error, KeyboardInterrupt) else known
            atexit.register(lambda: (sys.stdout.flush(), os._exit(status)))
        os.dup2(self.stderr, 2)


def connect(place: Place | None, timeout: float, heartbeat: float) -> None:
    """Start jax's own service and client; time-outs in seconds, those that this version of jax has."""
    import jax

    known = inspect.signature(jax.distributed.initialize).parameters
    options: dict[str, Any] = {"initialization_timeout": int(timeout) + 30, "heartbeat_timeout_seconds": int(heartbeat)}
    options = {name: value for name, value in options.items() if name in known}
    who = () if place is None else (place.address, place.count, place.index)
    try:
        jax.distributed.initialize(*who, **options)
    except (ValueError, RuntimeError) as error:
        if place is None and "be defined" in str(error):
            none = "this is no cluster that jax knows (SLURM, Open MPI, TPU, Kubernetes)"
            raise UserError(f"--distributed=auto: {none}; give HOST:PORT,COUNT,INDEX") from None
        raise UserError(f"--distributed: jax's processes did not meet: {one_line(str(error))}") from error


@contextlib.contextmanager
def joined(distributed: str | None, timeout: float, workdir: Path | None = None, heartbeat: float = 30) -> Iterator[None]:
    """Work as one process of a job ('auto' or HOST:PORT,COUNT,INDEX); None: alone.

    `timeout`: seconds to wait for all; `heartbeat`: seconds of silence after which a process counts as dead.
    """
    if not distributed:
        yield
        return
    place = None if distributed == "auto" else read_place(distributed)
    lines: dict[int, Line] = {}
    if place:
        lines = gather(place, timeout, heartbeat) if place.index == 0 else {0: arrive(place, timeout, heartbeat)}
    job = Job(f"{place.count} at {place.address}" if place else "this job", lines, workdir)
    job.guard()
    try:
        with started(job, timeout):
            connect(place, timeout, heartbeat)
        yield
    except SystemExit as error:
        job.leave(None if error.code in (None, 0, 130, Temporary.status) else UserError(f"exit status {error.code}"))
        raise
    except BaseException as error:
        if not isinstance(error, UserError | KeyboardInterrupt):
            # A collective may fail before the connection closes: the watching thread knows the cause, and ends this process.
            if job.watched.wait(3):
                time.sleep(10)
            if any(part in str(error) for part in BROKEN):
                error = Temporary(f"another process of {job.name} is gone ({one_line(str(error), 200)}); {job.last_save()}")
        job.leave(error)
        raise error from None if isinstance(error, UserError) else error.__cause__
    job.leave(None)


@contextlib.contextmanager
def started(job: Job, timeout: float) -> Iterator[None]:
    """Print that jax waits for its processes, and end the job after `timeout` seconds."""
    done, wait = threading.Event(), Wait(timeout)

    def look() -> None:
        while not done.wait(0.5):
            if not wait.say(f"the processes of {job.name}"):
                job.end(f"the processes of {job.name} did not meet within {timeout:.0f} s", UserError.status)

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        done.set()
