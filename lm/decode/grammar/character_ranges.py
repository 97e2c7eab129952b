"""Characters of a regular expression: ranges of code points, cut into sequences of byte ranges of UTF-8."""

import functools
from collections.abc import Callable, Iterable, Sequence
from re import _constants as ops
from typing import Any

import numpy as np

from lm.errors import check

Ranges = Sequence[tuple[int, int]]  # of code points or bytes, ends included
LAST = 0x10FFFF
DIGITS, SPACES = [(48, 57)], [(9, 13), (32, 32)]


def ranges_of(op: Any, argument: Any, what: str) -> Ranges:
    """Return the code points of one character, class or dot."""
    check(op in CHARACTERS, f"{what} is no regular expression that an automaton follows: it has {str(op).lower()}")
    return CHARACTERS[op](argument)


def members(items: Iterable) -> Ranges:
    """Give the ranges of a set like [a-z\\d] or [^x]."""
    items = list(items)
    negated, found = items[0][0] is ops.NEGATE, []
    for op, argument in items:
        if op is ops.LITERAL:
            found.append((argument, argument))
        elif op is ops.RANGE:
            found.append(argument)
        elif op is ops.CATEGORY:
            found += category(argument, negated)
    outside = others(found)
    return outside if negated else others(outside)  # joined where they overlap


@functools.cache
def category(name, whole: bool = False) -> Ranges:
    """Give the ranges of \\d \\s \\w and their opposites; `whole`: of all of Unicode, as the opposites always are."""
    opposite = "NOT" in str(name)
    kind = str(name).rsplit("_", 1)[1]
    if not opposite and not whole and kind != "WORD":
        return DIGITS if kind == "DIGIT" else SPACES
    test: Callable[[str], bool] = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": str.isalnum}[kind]
    hits = np.fromiter((test(chr(c)) for c in range(LAST + 1)), bool, LAST + 1)
    hits[ord("_")] |= kind == "WORD"
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hits != opposite, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2])]


def others(ranges: Ranges) -> Ranges:
    """Give all code points but these."""
    found, low = [], 0
    for a, b in sorted(ranges):
        if a > low:
            found.append((low, a - 1))
        low = max(low, b + 1)
    return [*found, (low, LAST)] if low <= LAST else found


CHARACTERS = {
    ops.LITERAL: lambda c: [(c, c)],
    ops.NOT_LITERAL: lambda c: others([(c, c)]),
    ops.ANY: lambda _: others([(10, 10)]),
    ops.IN: members,
}


@functools.lru_cache(4096)
def byte_ranges(ranges: tuple[tuple[int, int], ...]) -> list[list[tuple[int, int]]]:
    """Cut ranges of code points into sequences of byte ranges; half surrogate pairs are no characters."""
    found = []
    for low, high in ranges:
        for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, LAST)):
            if low <= last and high >= first:
                found += cut(max(low, first), min(high, last))
    return found


def cut(low: int, high: int) -> list[list[tuple[int, int]]]:
    """Cut a range of characters of equally many bytes where the bytes behind do not run through all of their values."""
    count = len(chr(high).encode())
    for size in range(1, count):
        mask = (1 << 6 * size) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                return cut(low, low | mask) + cut((low | mask) + 1, high)
            if high & mask != mask:
                return cut(low, (high & ~mask) - 1) + cut(high & ~mask, high)
    return [list(zip(chr(low).encode(), chr(high).encode()))]
