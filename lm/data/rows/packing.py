"""Cut a token stream into rows, cut long texts into windows, and group documents into rows; pure numpy.

A row is `tokens`, `segments` and `positions`, int32 [length] each: `segments` numbers the row's documents 1, 2, ...
(0 is padding), `positions` counts from 0 within each. Rows may share constant arrays: do not write into them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from lm.data.corpus.store import Tokens
from lm.errors import UserError

Row = dict[str, np.ndarray]
BLOCK = 1 << 25  # tokens searched for separators at once


def lay(sequences: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concatenate sequences into a row: tokens, segments (from 1) and positions, int32 [length], truncated or padded."""
    tokens, segments, positions = (np.zeros(length, np.int32) for _ in range(3))
    if sequences:
        sizes = np.array([len(sequence) for sequence in sequences])
        flat = np.concatenate(sequences)[:length]
        tokens[: len(flat)] = flat
        segments[: len(flat)] = np.repeat(np.arange(1, len(sizes) + 1), sizes)[:length]
        # Positions restart at each sequence, so that a packed sequence is computed like one alone in its row.
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)[:length]
        positions[: len(flat)] = np.arange(len(flat)) - first
    return tokens, segments, positions


def window(tokens: Tokens, start: int, length: int, packing: str = "documents") -> Row:
    """Return the row of stream positions [start, start + length), padded past the end.

    With packing='windows' the row is one segment. A document begins at the separator before it.
    """
    ids = tokens.tokens[start : start + length].astype(np.int32)
    real = len(ids)
    if packing == "windows":
        segments, positions = _one(length)
    else:
        # Only borders within the row: a document that begins at its first token needs none.
        low, high = np.searchsorted(tokens.starts, (start, start + real - 1), "right")
        segments, positions = _segments(tokens.starts[low:high] - start, length) if low < high else _one(length)
    if real < length:
        ids, segments, positions = (_pad(a[:real], length) for a in (ids, segments, positions))
    return {"tokens": ids, "segments": segments, "positions": positions}


def ring(tokens: Tokens) -> int:
    """Return the length of the stream as a ring: the separator at its end is the one at its beginning."""
    return len(tokens) - (tokens.separator is not None)


def wrapped(tokens: Tokens, start: int, length: int, packing: str = "documents") -> Row:
    """Return a full row of the stream as a ring: past its end the row continues at its start."""
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


def token_windows(count: int, size: int, step: int) -> list[tuple[int, int]]:
    """Return [low, high) of windows of at most `size` tokens, `step` apart, until one reaches the end (run_squad)."""
    windows, low = [], 0
    while True:
        high = min(count, low + size)
        windows.append((low, high))
        if high == count:
            return windows
        low += min(size, step)


def owners(windows: list[tuple[int, int]], count: int) -> np.ndarray:
    """Return the number of the window with most context for each item, int64 [count]; of equal windows the first.

    The context is the smaller of the numbers of items to the left and to the right, plus a hundredth of the window's length
    (Devlin et al. 2019, run_squad).
    """
    best, owner = np.full(count, -1.0), np.zeros(count, np.int64)
    for k, (low, high) in enumerate(windows):
        place = np.arange(low, high)
        score = np.minimum(place - low, high - 1 - place) + 0.01 * (high - low)
        better = score > best[low:high]
        owner[low:high][better] = k
        best[low:high][better] = score[better]
    return owner


def word_windows(sizes: list[int], capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Return [low, high) of windows of words, sizes in tokens, of at most `capacity` tokens that overlap by up to `overlap`."""
    ends = np.cumsum([0, *(min(size, capacity) for size in sizes)])
    windows, low = [], 0
    while True:
        # At least one word, and at least one new one below: the loop ends whatever the sizes.
        high = max(low + 1, int(np.searchsorted(ends, ends[low] + capacity, "right")) - 1)
        windows.append((low, high))
        if high >= len(sizes):
            return windows
        low = max(low + 1, int(np.searchsorted(ends, ends[high] - overlap, "left")))


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
    blocks = (tokens.tokens[at : at + BLOCK] == tokens.separator for at in range(0, len(tokens), BLOCK))
    positions = [np.flatnonzero(block) + k * BLOCK for k, block in enumerate(blocks)]
    return np.concatenate([np.zeros(0, np.int64), *positions])


def next_fit(sizes: np.ndarray, limit: tuple[int, ...]) -> np.ndarray:
    """Group adjacent documents into rows: each takes documents as long as all its limits hold.

    `sizes`: int64 [documents, limits], none above its limit. Returns the first document of each row and, at the end,
    the number of documents: int64 [rows + 1].
    """
    count = len(sizes)
    if not count:
        return np.zeros(1, np.int64)
    totals = np.concatenate([np.zeros((1, len(limit)), np.int64), np.cumsum(sizes, axis=0)])
    # The end of a row that starts at each document; then follow the rows from the first document on.
    ends = [np.searchsorted(column, column[:-1] + most, "right") - 1 for column, most in zip(totals.T, limit)]
    after = np.minimum.reduce(ends).tolist()
    rows = [0]
    while rows[-1] < count:
        rows.append(after[rows[-1]])
    return np.array(rows, np.int64)
