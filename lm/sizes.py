"""Sizes before work: how much memory there is, and one line where something would need more."""

import functools
import os
from pathlib import Path

from lm.errors import check

UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


def readable(count: float) -> str:
    """Write a number of bytes with its unit: 3.2 TB, 24 GB."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


@functools.cache  # asked for every batch, and does not change
def memory() -> int:
    """Return the bytes of memory that this process may use: of the machine, or of the control group that it is in."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(file).read_text()))
        except (OSError, ValueError):  # not Linux, no limit ("max"), or not readable
            continue
    return found


def check_memory(count: float, what: str, remedy: str = "") -> None:
    """Raise UserError where `count` bytes are more than this machine has."""
    have = memory()
    more = f"; {remedy}" if remedy else ""
    check(count <= have, f"{what} needs {readable(count)}, this machine has {readable(have)}{more}")
