"""The machine's memory, and the check of a planned size against it."""

import functools
import os
from pathlib import Path

from lm.errors import check

UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


def readable(count: float) -> str:
    """Format a number of bytes: 3.2 TB, 24 GB."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


@functools.cache  # checked for every batch, and constant
def memory() -> int:
    """Return the bytes of memory available to this process: the machine's, or its control group's limit."""
    # In a container the machine has more than the process may use, and the kernel kills without a message.
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, int(Path(file).read_text()))
        except (OSError, ValueError):  # not Linux, no limit ("max"), or not readable
            continue
    return limit


def check_memory(count: float, what: str, remedy: str = "") -> None:
    """Raise UserError where `count` bytes exceed the memory; `what` needs them."""
    have = memory()
    more = f"; {remedy}" if remedy else ""
    check(count <= have, f"{what} needs {readable(count)}, this machine has {readable(have)}{more}")
