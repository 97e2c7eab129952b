"""A token file on disk: raw little-endian ids, the documents' starts, and a JSON header; read by memory map.

Stream layout: the separator, then each document followed by the separator. So next-token prediction meets every token
of every document exactly once, its first token (predicted from the separator before it, which opens the document) and
its end (the separator after it) included. A tokenizer without a separator gives the bare concatenation.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lm.data.corpus.digests import DamagedCorpus
from lm.errors import UserError
from lm.strict_json import load_json

if TYPE_CHECKING:
    from lm.data.corpus.joined import Joined

ALL_MARKS = 15  # every bit of lm.data.text.words
FORMAT = 3  # part of every cache key: raise it when the layout, the split or a reader's output changes
VERIFIED = 100_000_000  # bytes of a stream verified at every opening: 40 ms


class Tokens:
    """A stream of ids. `tokens`: uint16 or uint32 [n], of several shards a `Joined` array; `starts`: int64 [documents].

    A document starts at the separator before it. `raw_bytes` counts the UTF-8 bytes of the text without separators.
    `marks`: uint8 [n], the bits of `lm.data.text.words` for each token, or None.
    """

    def __init__(self, tokens: np.ndarray | Joined, starts: np.ndarray, header: dict, marks: np.ndarray | Joined | None = None):
        # Plain views: slicing np.memmap itself costs three times as much. `Joined` arrays view as they are.
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

    def half(self, second: bool) -> Tokens:
        """Return the documents before the border nearest to the middle, or those behind it; of a single one its half.

        `raw_bytes` is divided like the tokens: bits per byte of both halves rest on the bytes per token of the whole.
        """
        middle = len(self) // 2
        if len(self.starts) > 1:
            cut = int(self.starts[1:][np.abs(self.starts[1:] - middle).argmin()])
            starts = self.starts[(self.starts >= cut) == second] - cut * second
            # The separator at the border closes the first half and opens the second.
            last = cut + (self.separator is not None)
        else:
            cut = last = middle
            starts = np.zeros_like(self.starts)
        low, high = (cut, len(self)) if second else (0, last)
        share = (high - low - 1) / max(len(self) - 1, 1)
        header = {**self.header, "raw_bytes": round(self.raw_bytes * share)}
        marks = None if self.marks is None else _stretch(self.marks, low, high)
        return Tokens(_stretch(self.tokens, low, high), starts, header, marks)

    @staticmethod
    def open(base: Path, whole: bool = False) -> Tokens:
        """Map BASE.bin, BASE.starts and, where the corpus has them, BASE.marks under the header BASE.json.

        Files of up to VERIFIED bytes in all, with `whole` of any size, are compared with their checksums. Raises DamagedCorpus.
        """
        try:
            header = load_json(base.with_suffix(".json"), dict)
            if "shards" in header:
                from lm.data.corpus.joined import open_arrays

                joined, starts, bits = open_arrays(base, header, math.inf if whole else VERIFIED)
                return Tokens(joined, starts, header, bits)
            tokens = _map(base.with_suffix(".bin"), np.dtype(header["dtype"]))
            starts = _map(base.with_suffix(".starts"), np.dtype("<i8"))
            marks = _map(base.with_suffix(".marks"), np.dtype("u1")) if header.get("marks") else None
            wanted, sums = (header["tokens"], header["documents"], header["tokens"]), header["crc32"]
        except (OSError, ValueError, KeyError, UserError) as error:
            raise DamagedCorpus(f"{base}.bin is damaged ({error})") from None
        # Lengths first, which cost no reading: streams too large to be verified are at least complete.
        if wanted != (len(tokens), len(starts), len(tokens if marks is None else marks)):
            raise DamagedCorpus(f"{base}.bin is cut short")
        arrays = {".bin": tokens, ".starts": starts} | ({} if marks is None else {".marks": marks})
        if whole or sum(array.nbytes for array in arrays.values()) <= VERIFIED:
            for (suffix, array), expected in zip(arrays.items(), sums, strict=True):
                if zlib.crc32(array.view(np.uint8).data) != expected:
                    raise DamagedCorpus(f"{base}{suffix} is damaged (its checksum does not fit)")
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


def _stretch(array: np.ndarray | Joined, low: int, high: int) -> np.ndarray | Joined:
    return array[low:high] if isinstance(array, np.ndarray) else array.stretch(low, high)


def id_type(vocab: int) -> np.dtype:
    return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    # mmap refuses an empty file.
    return np.memmap(path, dtype, "r") if os.path.getsize(path) else np.zeros(0, dtype)


class Writer:
    """Append documents to BASE.bin, BASE.starts and, if `marked`, BASE.marks.

    Resumes from a `state` of `flush`: tokens, documents, and the CRC-32 of each file.
    """

    def __init__(self, base: Path, vocab: int, separator: int | None, state: Sequence[int] = (), marked: bool = False):
        self.base, self.vocab, self.separator = base, vocab, separator
        self.dtype = id_type(vocab)
        tokens, documents, *self.sums = state or (0, 0, *[0] * (2 + marked))
        self.tokens, self.documents = tokens, documents
        self._bin = _reopen(base.with_suffix(".bin"), tokens * self.dtype.itemsize)
        self._starts = _reopen(base.with_suffix(".starts"), documents * 8)
        self._marks = _reopen(base.with_suffix(".marks"), tokens) if marked else None
        if not tokens and separator is not None:
            self._write(np.array([separator]), None)

    def add(self, ids: np.ndarray, first: bool, last: bool, marks: np.ndarray | None = None) -> None:
        """Append a piece, the `first` or `last` of a document or in between; `marks`: uint8 [len(ids)]."""
        if first:
            # The separator that ended the document before opens this one.
            start = self.tokens - (self.separator is not None)
            self._put(1, self._starts, np.array([start], "<i8").tobytes())
            self.documents += 1
        self._write(ids, marks)
        if last and self.separator is not None:
            self._write(np.array([self.separator]), None)

    def _write(self, ids: np.ndarray, marks: np.ndarray | None) -> None:
        self._put(0, self._bin, ids.astype(self.dtype).tobytes())
        if self._marks:  # a separator starts a unit of every kind
            bits = np.full(len(ids), ALL_MARKS, np.uint8) if marks is None else marks
            self._put(2, self._marks, bits.tobytes())
        self.tokens += len(ids)

    def _put(self, number: int, file: BinaryIO, raw: bytes) -> None:
        self.sums[number] = zlib.crc32(raw, self.sums[number])
        file.write(raw)

    def flush(self) -> tuple[int, ...]:
        """Flush all files to the operating system; return the state to resume from (tokens, documents, checksums)."""
        self._bin.flush()
        self._starts.flush()
        if self._marks:
            self._marks.flush()
        return self.tokens, self.documents, *self.sums

    def close(self, **header: Any) -> None:
        """Sync the files and write the header."""
        # On disk before the header is written, which alone makes the files a stream.
        for file in filter(None, (self._bin, self._starts, self._marks)):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        header |= {"format": FORMAT, "vocab": self.vocab, "dtype": self.dtype.str, "separator": self.separator,
                   "tokens": self.tokens, "documents": self.documents, "crc32": self.sums}  # fmt: skip
        header |= {"marks": True} if self._marks else {}
        self.base.with_suffix(".json").write_text(json.dumps(header, indent=1))


def _reopen(path: Path, size: int) -> BinaryIO:
    """Open for appending at exactly `size` bytes; cuts off bytes written after the last journal entry of a killed run."""
    file = open(path, "ab")  # noqa: SIM115
    if os.path.getsize(path) < size:
        file.close()
        raise EOFError(path)
    file.truncate(size)
    return file
