"""One writer of a folder at a time, in a folder beside it that is renamed when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def set_aside(path: Path) -> Path:
    """Rename an unusable folder, so that nothing is lost; return the new path."""
    number = 1
    while os.path.lexists(other := path.with_name(f"{path.name}.aside-{number}")):
        number += 1
    return path.rename(other)


@contextlib.contextmanager
def exclusive(final: Path, report: Callable[[str], None], wait: bool = True) -> Iterator[Path]:
    """Lock `final` for writing; yield the folder to write in. The lock ends with its process.

    Raises BlockingIOError where another process has it, without `wait`.
    """
    folder = final.with_name(f"{final.name}.partial")
    with open(final.with_name(f"{final.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            report("another process prepares this corpus: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: a folder per process, and the first to finish wins
            folder = final.with_name(f"{final.name}.partial-{os.uname().nodename}-{os.getpid()}")
        if os.path.lexists(folder) and not folder.is_dir():
            report(f"{folder} is no folder: set aside as {set_aside(folder).name}")
        yield folder


def publish(folder: Path, final: Path) -> None:
    """Rename a folder that is whole, without the temporary files (`lm.outputs.replace_file`) that a kill left in it."""
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            path.unlink()
    try:
        folder.rename(final)
    except OSError:
        # Without locks another process may have been first: its folder is the same, bit for bit.
        if not final.is_dir():
            raise
        shutil.rmtree(folder, ignore_errors=True)
