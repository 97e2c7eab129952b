"""Cut a token stream into rows, and pack short examples into rows; pure numpy.

A row is `tokens`, `segments` and `positions`, int32 [length] each: `segments` numbers the row's documents 1, 2, ...
(0 is padding), `positions` counts from 0 within each. Rows may share constant arrays: do not write into them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from lm.data.store import Tokens

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
