"""Checksums of prepared corpora: a cache is believed when its files are whole and its text is the one that it was made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.outputs import replace_file
from lm.strict_json import is_sealed, load_json, seal

BLOCK = 16 << 20  # bytes that are read at once
SEEN = 16  # states of the text's files that are remembered: several machines may share a cache


class DamagedCorpus(UserError):
    """A prepared corpus that is not as it was written."""


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file (2.5 GB/s on one core)."""
    total = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            total = zlib.crc32(block, total)
    return total


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object in one piece, with a checksum of itself."""
    replace_file(path, json.dumps(seal(values), indent=1))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote; raises DamagedCorpus where it is not as it was written."""
    try:
        found = load_json(path, dict)
    except (UserError, OSError) as error:
        raise DamagedCorpus(f"{path} is damaged ({error})") from None
    if not is_sealed(found):
        raise DamagedCorpus(f"{path} is damaged (its checksum does not fit)")
    return {name: value for name, value in found.items() if name != "seal"}


def verify(folder: Path, sums: Mapping[str, int]) -> None:
    """Compare files of a folder with their checksums; raises DamagedCorpus naming the first that differs."""
    for name, expected in sums.items():
        try:
            found = checksum(folder / name)
        except OSError as error:
            raise DamagedCorpus(f"{folder / name} is damaged ({error.strerror})") from None
        if found != expected:
            raise DamagedCorpus(f"{folder / name} is damaged (its checksum does not fit)")


def fingerprint(paths: Iterable[str]) -> str:
    """Digest when the kernel last saw each file change: no tool can set that time back, as `touch -r` does the other."""
    return hashlib.sha256(repr([(path, _changed(path)) for path in paths]).encode()).hexdigest()[:16]


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_ctime_ns
    except OSError:  # gone: its reader says so
        return 0


def remembered(folder: Path) -> list[str]:
    """Return the states (`fingerprint`) of the text's files in which they were seen to hold the text of this cache."""
    try:
        return list(map(str, load_json(folder / "seen.json", list)))
    except (UserError, OSError):
        return []


def remember(folder: Path, state: str) -> None:
    """Note one more state; a cache that cannot be written is asked again the next time."""
    with contextlib.suppress(OSError):
        replace_file(folder / "seen.json", json.dumps([*remembered(folder), state][-SEEN:]))
