"""A token file on disk: raw little-endian ids, the documents' starts, and a JSON header; read by memory map.

Stream layout: the separator, then each document followed by the separator. So next-token prediction meets every token
of every document exactly once, its first token (predicted from the separator before it, which opens the document) and
its end (the separator after it) included. A tokenizer without a separator gives the bare concatenation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lm.errors import UserError

ALL_MARKS = 15  # every bit of lm.data.words
FORMAT = 2  # part of every cache key: raise it when the layout, the split or what a reader yields changes


class Tokens:
    """A stream of ids. `tokens`: uint16 or uint32 [n]; `starts`: int64 [documents], where each document begins.

    A document begins at the separator before it. `raw_bytes` counts the UTF-8 bytes of the text without separators.
    `marks`: uint8 [n], the bits of `lm.data.words` for each token, or None.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, header: dict, marks: np.ndarray | None = None):
        # Plain views: slicing np.memmap itself costs three times as much.
        self.tokens, self.starts = tokens.view(np.ndarray), starts.view(np.ndarray)
        self.marks = None if marks is None else marks.view(np.ndarray)
        self.header = header
        self.raw_bytes: int = header["raw_bytes"]
        self.separator: int | None = header["separator"]
        self.vocab: int = header["vocab"]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def documents(self) -> int:
        return len(self.starts)

    @staticmethod
    def open(base: Path) -> Tokens:
        """Map BASE.bin, BASE.starts and, where the corpus has them, BASE.marks under the header BASE.json."""
        try:
            header = json.loads(base.with_suffix(".json").read_text())
            tokens = _map(base.with_suffix(".bin"), np.dtype(header["dtype"]))
            starts = _map(base.with_suffix(".starts"), np.dtype("<i8"))
            marks = _map(base.with_suffix(".marks"), np.dtype("u1")) if header.get("marks") else None
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{base}.bin is damaged ({error}): delete {base.parent} to prepare it again") from None
        found = len(tokens), len(starts), len(tokens if marks is None else marks)
        if found != (header["tokens"], header["documents"], header["tokens"]):
            raise UserError(f"{base}.bin is cut short: delete {base.parent} to prepare it again")
        return Tokens(tokens, starts, header, marks)

    @staticmethod
    def of(documents: Iterable[np.ndarray], separator: int | None, vocab: int, raw_bytes: int = 0) -> Tokens:
        """Lay out documents that are already ids, in memory."""
        edge = [] if separator is None else [separator]
        parts, starts, at = [np.array(edge, np.int32)], [], 0
        for ids in documents:
            starts.append(at)
            parts.append(np.concatenate([ids, edge]).astype(np.int32))
            at += len(parts[-1])
        stream = np.concatenate(parts).astype(id_type(vocab))
        header = {"raw_bytes": raw_bytes, "separator": separator, "vocab": vocab}
        return Tokens(stream, np.array(starts, np.int64), header)


def id_type(vocab: int) -> np.dtype:
    return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    # mmap refuses an empty file.
    return np.memmap(path, dtype, "r") if os.path.getsize(path) else np.zeros(0, dtype)


class Writer:
    """Append documents to BASE.bin, BASE.starts and, if `marked`, BASE.marks; continues from given sizes after a kill."""

    def __init__(
        self, base: Path, vocab: int, separator: int | None, tokens: int = 0, documents: int = 0, marked: bool = False
    ):
        self.base, self.vocab, self.separator = base, vocab, separator
        self.dtype = id_type(vocab)
        self.tokens, self.documents = tokens, documents
        self._bin = _reopen(base.with_suffix(".bin"), tokens * self.dtype.itemsize)
        self._starts = _reopen(base.with_suffix(".starts"), documents * 8)
        self._marks = _reopen(base.with_suffix(".marks"), tokens) if marked else None
        if not tokens and separator is not None:
            self._write(np.array([separator]), None)

    def add(self, ids: np.ndarray, first: bool, last: bool, marks: np.ndarray | None = None) -> None:
        """Append a piece: `first` begins a document, `last` ends it; `marks`: uint8 [len(ids)]."""
        if first:
            start = self.tokens - (self.separator is not None)
            self._starts.write(np.array([start], "<i8").tobytes())
            self.documents += 1
        self._write(ids, marks)
        if last and self.separator is not None:
            self._write(np.array([self.separator]), None)

    def _write(self, ids: np.ndarray, marks: np.ndarray | None) -> None:
        self._bin.write(ids.astype(self.dtype).tobytes())
        if self._marks:  # a separator begins a unit of every kind
            self._marks.write(np.full(len(ids), ALL_MARKS, np.uint8).tobytes() if marks is None else marks.tobytes())
        self.tokens += len(ids)

    def flush(self) -> tuple[int, int]:
        """Hand everything to the operating system; return (tokens, documents) written."""
        self._bin.flush()
        self._starts.flush()
        if self._marks:
            self._marks.flush()
        return self.tokens, self.documents

    def close(self, **header) -> None:
        """Sync the files and write the header."""
        for file in filter(None, (self._bin, self._starts, self._marks)):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        header |= {"format": FORMAT, "vocab": self.vocab, "dtype": self.dtype.str, "separator": self.separator,
                   "tokens": self.tokens, "documents": self.documents}  # fmt: skip
        header |= {"marks": True} if self._marks else {}
        self.base.with_suffix(".json").write_text(json.dumps(header, indent=1))


def _reopen(path: Path, size: int):
    """Open for appending at exactly `size` bytes: what a killed writer put after its last journal entry is cut off."""
    file = open(path, "ab")  # noqa: SIM115
    if os.path.getsize(path) < size:
        file.close()
        raise EOFError(path)
    file.truncate(size)
    return file
