"""Compressed files of text (.gz, .zst), decompressed as streams by pyarrow, which brings both codecs.

`Unpacked` stands for the memory map of a plain file: it serves byte ranges of the decompressed text that mostly ascend, from a
buffer, and starts again at the file's beginning for one that lies before the buffer.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import BinaryIO, overload

from lm.errors import UserError

CODECS = {".gz": "gzip", ".zst": "zstd"}
BLOCK = 1 << 20  # decompressed bytes that are read at once


def codec(path: str) -> str:
    """Return the codec of a file by its ending, "" of a plain one."""
    return CODECS.get(os.path.splitext(path)[1].lower(), "")


def blocks(path: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file; raises UserError with its name when it is damaged or cut short."""
    import pyarrow

    # Without a byte there is no stream, which the codec would take for an empty text.
    reason = "it is empty" if not os.path.getsize(path) else ""
    try:
        with pyarrow.CompressedInputStream(pyarrow.OSFile(path), codec(path)) as stream:
            while not reason and (block := stream.read(BLOCK)):
                yield block
    except OSError as error:
        reason = " ".join(str(error).split())[:80]
    if reason:
        raise UserError(f"{path} is no {codec(path)} file, or damaged ({reason}); fetch it again")


def read_bytes(path: str) -> bytes:
    """Return the text of a file, decompressed where its name says so."""
    if codec(path):
        return b"".join(blocks(path))
    with open(path, "rb") as file:
        return file.read()


def byte_lines(path: str, start: int) -> Iterator[bytes]:
    """Yield the lines of a file from byte `start` of its text on, with their ends."""
    if not codec(path):
        file: BinaryIO
        with open(path, "rb") as file:
            file.seek(start)
            yield from file
        return
    rest = b""
    for block in blocks(path):
        skipped = min(start, len(block))
        start -= skipped
        *lines, rest = (rest + block[skipped:]).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


class Unpacked:
    """The text of a compressed file as a sequence of bytes; ascending ranges are decompressed once."""

    def __init__(self, path: str):
        self.path = path
        self._restart()

    def _restart(self) -> None:
        self._blocks, self._low, self._buffer = blocks(self.path), 0, bytearray()

    @functools.cached_property
    def _size(self) -> int:
        return sum(map(len, blocks(self.path)))

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    @overload
    def __getitem__(self, key: int) -> int: ...
    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, slice):
            return self._range(key.start or 0, len(self) if key.stop is None else key.stop)
        return self._range(key, key + 1)[0]

    def find(self, part: bytes, start: int, stop: int) -> int:
        """Return the first offset of `part` within [start, stop), -1 without one."""
        at = self._range(start, stop).find(part)
        return at + start if at >= 0 else -1

    def _range(self, start: int, stop: int) -> bytes:
        if start < self._low:
            self._restart()
        while self._low + len(self._buffer) < stop and (block := next(self._blocks, b"")):
            self._buffer += block
            # Bytes before the range are dropped, up to a block that short steps back may need.
            surplus = min(start - BLOCK - self._low, len(self._buffer))
            if surplus > 0:
                del self._buffer[:surplus]
                self._low += surplus
        return bytes(self._buffer[start - self._low : stop - self._low])
