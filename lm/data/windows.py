"""Windows of texts that are longer than a row: where they begin, and which of them an item belongs to; numpy only."""

from __future__ import annotations

import numpy as np


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
