"""Cut a token stream into rows, and pack short examples into rows; pure numpy.

A row is `tokens`, `segments` and `positions`, int32 [length] each: `segments` numbers the row's documents 1, 2, ...
(0 is padding), `positions` counts from 0 within each. Rows may share constant arrays: do not write into them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from lm.data.corpus.store import Tokens
from lm.errors import UserError

Row = dict[str, np.ndarray]


def window(tokens: Tokens, start: int, length: int, packing: str = "documents") -> Row:
    """Return the row of stream positions [start, start + length); past the end it is padding.

    With packing='windows' the row is one segment. A document begins at the separator before it.
    """
    ids = tokens.tokens[start : start + length].astype(np.int32)
    real = len(ids)
    if packing == "windows":
        segments, positions = _one(length)
    else:
        low, high = np.searchsorted(tokens.starts, (start, start + real - 1), "right")
        segments, positions = _segments(tokens.starts[low:high] - start, length) if low < high else _one(length)
    if real < length:
        ids, segments, positions = (_pad(a[:real], length) for a in (ids, segments, positions))
    return {"tokens": ids, "segments": segments, "positions": positions}


def ring(tokens: Tokens) -> int:
    """Return the length of the stream as a ring: the separator at its end is the one at its beginning."""
    return len(tokens) - (tokens.separator is not None)


def wrapped(tokens: Tokens, start: int, length: int, packing: str = "documents") -> Row:
    """Return a full row that goes on at the stream's beginning when it reaches its end, as often as needed."""
    size = ring(tokens)
    start %= size
    if start + length <= size:
        return window(tokens, start, length, packing)
    at = (start + np.arange(length)) % size
    ids = tokens.tokens[at].astype(np.int32)
    if packing == "windows":
        segments, positions = _one(length)
    else:
        begins = tokens.starts[np.searchsorted(tokens.starts, at).clip(max=tokens.documents - 1)] == at
        inner = np.flatnonzero(begins)
        segments, positions = _segments(inner[inner > 0], length)
    return {"tokens": ids, "segments": segments, "positions": positions}


@functools.lru_cache(maxsize=8)
def _one(length: int) -> tuple[np.ndarray, np.ndarray]:
    segments, positions = np.ones(length, np.int32), np.arange(length, dtype=np.int32)
    segments.flags.writeable = positions.flags.writeable = False
    return segments, positions


def _segments(begins: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return segments and positions of a row in which documents begin at offsets `begins`, ascending, all above 0."""
    sizes = np.diff(begins, prepend=0, append=length)
    number = np.arange(1, len(sizes) + 1, dtype=np.int32)
    first = np.concatenate(([0], begins)).astype(np.int32)
    return np.repeat(number, sizes), _one(length)[1] - np.repeat(first, sizes)


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    padded = np.zeros((length, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def pack(examples: Sequence[Mapping[str, np.ndarray]], length: int) -> Row:
    """Pack examples of varying length into rows [R, length] by first fit, in the order given.

    An example maps names to arrays [T, ...] of one common T <= length. Every name is packed alike, 0 where nothing
    lies; `segments` (1, 2, ... in each row) and `positions` are added.
    """
    sizes = [len(next(iter(example.values()))) for example in examples]
    if sizes and max(sizes) > length:
        raise ValueError(f"example {int(np.argmax(sizes))} has {max(sizes)} tokens, a row {length}")
    places = first_fit(sizes, length)
    rows = 1 + max((row for row, _, _ in places), default=-1)
    template = examples[0] if examples else {}
    packed = {k: np.zeros((rows, length, *np.shape(v)[1:]), np.asarray(v).dtype) for k, v in template.items()}
    packed |= {name: np.zeros((rows, length), np.int32) for name in ("segments", "positions")}
    for example, size, (row, at, number) in zip(examples, sizes, places):
        for name, value in example.items():
            packed[name][row, at : at + size] = value
        packed["segments"][row, at : at + size] = number
        packed["positions"][row, at : at + size] = np.arange(size)
    return packed


def first_fit(sizes: Sequence[int], length: int) -> list[tuple[int, int, int]]:
    """Return (row, offset, number within the row from 1) for each size: the first row with room, else a new one."""
    used: list[int] = []
    count: list[int] = []
    places = []
    for size in sizes:
        row = next((r for r, taken in enumerate(used) if taken + size <= length), len(used))
        if row == len(used):
            used.append(0)
            count.append(0)
        count[row] += 1
        places.append((row, used[row], count[row]))
        used[row] += size
    return places


def windows(count: int, size: int, step: int) -> list[tuple[int, int]]:
    """Return [low, high) of windows of at most `size` items, `step` apart, until one reaches the end (run_squad)."""
    found, low = [], 0
    while True:
        high = min(count, low + size)
        found.append((low, high))
        if high == count:
            return found
        low += min(size, step)


def owners(found: list[tuple[int, int]], count: int) -> np.ndarray:
    """Return for each item the number of the window where it has most context, int64 [count].

    The context is the smaller of what is left and right of it, plus a hundredth of the window's length (Devlin et al.
    2019, run_squad); of equal windows the first.
    """
    best, owner = np.full(count, -1.0), np.zeros(count, np.int64)
    for k, (low, high) in enumerate(found):
        place = np.arange(low, high)
        score = np.minimum(place - low, high - 1 - place) + 0.01 * (high - low)
        better = score > best[low:high]
        owner[low:high][better] = k
        best[low:high][better] = score[better]
    return owner


def word_windows(sizes: list[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """Return [low, high) of windows of words, sizes in tokens, that fit `room` and overlap by up to `overlap` tokens."""
    ends = np.cumsum([0, *(min(size, room) for size in sizes)])
    found, low = [], 0
    while True:
        high = max(low + 1, int(np.searchsorted(ends, ends[low] + room, "right")) - 1)
        found.append((low, high))
        if high >= len(sizes):
            return found
        low = max(low + 1, int(np.searchsorted(ends, ends[high] - overlap, "left")))


BLOCK = 1 << 25  # tokens looked at at once


def boundaries(tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (low, high, first): field f is stream positions [low[f], high[f]), document i has fields
    first[i] ... first[i + 1] - 1; all int64. Without a separator every document is one field.
    """
    count = tokens.documents
    if tokens.separator is None or not count:
        return tokens.starts, np.append(tokens.starts[1:], len(tokens))[:count], np.arange(count + 1)
    borders = separators(tokens)
    first = np.searchsorted(borders, tokens.starts)
    if len(borders) < 2 or not np.array_equal(borders[np.minimum(first, len(borders) - 1)], tokens.starts):
        raise UserError("the token file has a document that no separator opens: delete its folder to prepare it again")
    return borders[:-1] + 1, borders[1:], np.append(first, len(borders) - 1)


def separators(tokens: Tokens) -> np.ndarray:
    """Return the stream positions of the separator, int64 ascending, reading the stream once in blocks."""
    found = [
        np.flatnonzero(tokens.tokens[at : at + BLOCK] == tokens.separator) + at for at in range(0, len(tokens), BLOCK)
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


def next_fit(sizes: np.ndarray, limit: tuple[int, ...]) -> np.ndarray:
    """Group adjacent documents into rows: each takes documents as long as all its limits hold.

    `sizes`: int64 [documents, limits], none above its limit. Returns the first document of each row and, at the end,
    the number of documents: int64 [rows + 1].
    """
    count = len(sizes)
    if not count:
        return np.zeros(1, np.int64)
    totals = np.concatenate([np.zeros((1, len(limit)), np.int64), np.cumsum(sizes, axis=0)])
    # Where a row that begins at each document would end; then follow the rows from the first document on.
    ends = [np.searchsorted(column, column[:-1] + most, "right") - 1 for column, most in zip(totals.T, limit)]
    after = np.minimum.reduce(ends).tolist()
    rows = [0]
    while rows[-1] < count:
        rows.append(after[rows[-1]])
    return np.array(rows, np.int64)
