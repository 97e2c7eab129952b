"""Characters of a regular expression: ranges of code points, cut into sequences of byte ranges of UTF-8."""

import functools
from collections.abc import Callable, Iterable, Sequence
from re import _constants as ops  # type: ignore[attr-defined]  # private, as in the automaton
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
    """Return the ranges of a set like [a-z\\d] or [^x]."""
    items = list(items)
    negated, ranges = items[0][0] is ops.NEGATE, []
    for op, argument in items:
        if op is ops.LITERAL:
            ranges.append((argument, argument))
        elif op is ops.RANGE:
            ranges.append(argument)
        elif op is ops.CATEGORY:
            ranges += category(argument, negated)
    outside = complement(ranges)
    return outside if negated else complement(outside)  # twice: merges ranges that overlap


@functools.cache
def category(name: Any, whole: bool = False) -> Ranges:
    """Return the ranges of \\d \\s \\w and their opposites; `whole`: of all of Unicode, as for the opposites always."""
    opposite = "NOT" in str(name)
    kind = str(name).rsplit("_", 1)[1]
    if not opposite and not whole and kind != "WORD":
        return DIGITS if kind == "DIGIT" else SPACES
    # Python's own predicates, as `re` uses them: its opposites and \w cover all of Unicode.
    test: Callable[[str], bool] = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": str.isalnum}[kind]
    hits = np.fromiter((test(chr(c)) for c in range(LAST + 1)), bool, LAST + 1)
    hits[ord("_")] |= kind == "WORD"
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hits != opposite, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2])]


def complement(ranges: Ranges) -> Ranges:
    """Return all code points outside the ranges, sorted and merged."""
    gaps, low = [], 0
    for a, b in sorted(ranges):
        if a > low:
            gaps.append((low, a - 1))
        low = max(low, b + 1)
    return [*gaps, (low, LAST)] if low <= LAST else gaps


CHARACTERS = {
    ops.LITERAL: lambda c: [(c, c)],
    ops.NOT_LITERAL: lambda c: complement([(c, c)]),
    ops.ANY: lambda _: complement([(10, 10)]),
    ops.IN: members,
}


@functools.lru_cache(4096)
def byte_ranges(ranges: tuple[tuple[int, int], ...]) -> list[list[tuple[int, int]]]:
    """Split ranges of code points into sequences of byte ranges; lone surrogates are no characters."""
    sequences = []
    for low, high in ranges:
        for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, LAST)):
            if low <= last and high >= first:
                sequences += cut(max(low, first), min(high, last))
    return sequences


def cut(low: int, high: int) -> list[list[tuple[int, int]]]:
    """Split a range of characters of equally many bytes until its later bytes run through all of their values."""
    count = len(chr(high).encode())
    for size in range(1, count):
        mask = (1 << 6 * size) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                return cut(low, low | mask) + cut((low | mask) + 1, high)
            if high & mask != mask:
                return cut(low, (high & ~mask) - 1) + cut(high & ~mask, high)
    return [list(zip(chr(low).encode(), chr(high).encode()))]
