"""Decide which text is held out for validation, the same way on every machine and in every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from lm.data.sources import Reader
from lm.errors import UserError

# A document is judged by its beginning, so that a long one need not be held in memory.
# Pieces of long documents are longer than this.
HEAD = 1 << 16


@dataclass(frozen=True)
class Split:
    """Hold out documents whose content hash, in [0, 1), is under `below`; of a single document, all from `cut` on."""

    below: float = 0.0
    cut: int | None = None


class Part(NamedTuple):
    """Text of one document on one side; `piece` is the reader's index that it came from.

    `borders` and `marks` as in `Piece`.
    """

    piece: int
    held_out: bool
    text: str
    first: bool
    last: bool
    borders: tuple[int, ...] = ()
    marks: Callable[[], np.ndarray] | None = None


def position(text: str) -> float:
    """Hash a document's first HEAD characters to [0, 1): exact duplicates land on one side."""
    digest = blake2b(text[:HEAD].encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def plan(reader: Reader, share: float) -> Split:
    """Choose the rule for one source; a small corpus always gets a document, or part of its only one, on each side.

    Reads until both sides have a document: a few dozen documents, or all of a corpus that has only one.
    """
    low, high, documents, characters, fresh, fields = 1.0, -1.0, 0, 0, True, False
    for i in range(len(reader)):
        text, end, borders, _ = reader[i]
        fields = fields or bool(borders)
        if fresh and text:
            low, high, documents, fresh = min(low, position(text)), max(high, position(text)), documents + 1, False
        if (share == 0 and documents) or low < share <= high:
            return Split(below=share)
        characters += len(text)
        fresh = fresh or end
    if not documents:
        raise UserError(f"{reader.name} has no text in it: give a file with text")
    if documents == 1:
        if fields:
            raise UserError(f"{reader.name} has a single document, whose fields cannot be cut; use validation=0")
        cut = int(characters * (1 - share))
        if not 0 < cut < characters:
            raise UserError(f"{reader.name} has {characters} characters: too few to hold out a share of {share}")
        return Split(cut=cut)
    if low == high:
        raise UserError(
            f"{reader.name}: all {documents} documents begin alike, so none can be held out; use validation=0"
        )
    return Split(below=math.nextafter(low, 1) if low >= share else high)


def parts(reader: Reader, split: Split) -> Iterator[Part]:
    """Walk through a source; empty documents are left out."""
    held_out, open_, seen = False, False, 0
    for i in range(len(reader)):
        text, end, borders, marks = reader[i]
        first = not open_
        if first and not text:
            continue
        if split.cut is not None:
            at = max(0, split.cut - seen)
            before, after = text[:at], text[at:]
            if before:
                yield Part(i, False, before, seen == 0, seen + len(before) == split.cut, (), _sliced(marks, None, at))
            if after or end:
                first = seen <= split.cut < seen + len(text)
                yield Part(i, True, after, first, end, (), _sliced(marks, at, None))
            seen += len(text)
        else:
            held_out = position(text) < split.below if first else held_out
            yield Part(i, held_out, text, first, end, borders, marks)
        open_ = not end


def _sliced(marks: Callable[[], np.ndarray] | None, start: int | None, stop: int | None):
    return None if marks is None else lambda: marks()[start:stop]
