"""Regular expressions as deterministic automata over UTF-8 bytes, minimal: Thompson's construction, then subsets.

Python's own parser reads the expression, and every text that is followed matches it in full by Python's `re`. \\d and \\s are
ASCII alone. An automaton remembers nothing but its state: look-around, references, anchors inside and flags are refused.
"""

import functools
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from re import _constants as ops
from re import _parser as parser

import numpy as np

from lm.errors import UserError, check

Ranges = list[tuple[int, int]]  # of code points or bytes, ends included
PARTS, STATES = 500_000, 20_000  # before and after the construction of subsets
LAST = 0x10FFFF
DIGITS, SPACES = [(48, 57)], [(9, 13), (32, 32)]


def automaton(expression: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Compile an expression: next (S, 256), -1 where nothing follows; which states may be the end. State 0 is first.

    Raises UserError, which begins with `what`, for an expression that is wrong or that no automaton of a bearable size follows.
    """
    expression = expression.removeprefix("^")
    if expression.endswith("$") and not expression.endswith(r"\$"):
        expression = expression[:-1]
    try:
        tree = parser.parse(expression)
    except (re.error, OverflowError) as error:
        raise UserError(f"{what} is no regular expression: {error}") from error
    check(not tree.state.flags & ~re.UNICODE.value, f"{what}: flags like (?i) cannot be followed; write both cases")
    parts = Parts(what)
    end = parts.sequence(tree, parts.new())
    return minimal(*parts.subsets(0, end))


class Parts:
    """A non-deterministic automaton: free moves, and moves by a range of bytes."""

    def __init__(self, what: str):
        self.what = what
        self.free: list[list[int]] = []
        self.moves: list[list[tuple[int, int, int]]] = []

    def new(self) -> int:
        check(len(self.free) < PARTS, f"{self.what} is too long to follow; repeat less")
        self.free.append([])
        self.moves.append([])
        return len(self.free) - 1

    def sequence(self, items: Iterable, at: int) -> int:
        """Add one thing after another; give the state behind them."""
        for op, argument in items:
            at = self.one(op, argument, at)
        return at

    def one(self, op, argument, at: int) -> int:
        if op is ops.SUBPATTERN:
            _, more, fewer, items = argument
            check(not more and not fewer, f"{self.what}: flags like (?i:...) cannot be followed; write both cases")
            return self.sequence(items, at)
        if op is ops.BRANCH:
            end = self.new()
            for items in argument[1]:
                self.free[self.sequence(items, at)].append(end)
            return end
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            return self.repeat(*argument, at)
        check(
            op in CHARACTERS,
            f"{self.what} is no regular expression that an automaton follows: it has {str(op).lower()}",
        )
        return self.character(CHARACTERS[op](argument), at)

    def repeat(self, least: int, most: int, items: Iterable, at: int) -> int:
        for _ in range(least):
            at = self.sequence(items, at)
        if most is ops.MAXREPEAT:
            again, end = self.new(), self.new()
            self.free[at].append(again)
            self.free[self.sequence(items, again)].append(again)
            self.free[again].append(end)
            return end
        ends = [at]
        for _ in range(most - least):
            ends.append(self.sequence(items, ends[-1]))
        end = self.new()
        for one in ends:
            self.free[one].append(end)
        return end

    def character(self, ranges: Ranges, at: int) -> int:
        """Add the bytes of any character of the ranges."""
        end = self.new()
        for sequence in byte_ranges(tuple(ranges)):
            now = at
            for i, (low, high) in enumerate(sequence):
                to = end if i == len(sequence) - 1 else self.new()
                self.moves[now].append((low, high, to))
                now = to
        return end

    def subsets(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Make it deterministic: its states are the sets of parts that a text may lead to."""
        start = self.reach([first])
        number, rows, queue = {start: 0}, [], [start]
        for now in queue:  # grows
            moves = [move for part in now for move in self.moves[part]]
            row = np.full(256, -1, np.int32)
            cuts = sorted({cut for low, high, _ in moves for cut in (low, high + 1)})
            for low, high in pairwise(cuts):
                to = frozenset(t for a, b, t in moves if a <= low and high - 1 <= b)
                if to:
                    to = self.reach(to)
                    if to not in number:
                        check(len(number) < STATES, f"{self.what} needs too many states; make it simpler")
                        number[to] = len(number)
                        queue.append(to)
                    row[low:high] = number[to]
            rows.append(row)
        return np.stack(rows), np.array([end in now for now in queue])

    def reach(self, parts: Iterable[int]) -> frozenset[int]:
        """Follow the free moves; keep the parts that matter: those with moves, and the ends."""
        seen, queue = set(parts), list(parts)
        while queue:
            for to in self.free[queue.pop()]:
                if to not in seen:
                    seen.add(to)
                    queue.append(to)
        return frozenset(part for part in seen if self.moves[part] or not self.free[part])


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
    return others(found) if negated else found


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


@functools.cache
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


def minimal(next_SY: np.ndarray, ends_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join states that the same texts lead from to an end (Moore 1956); the first stays the first."""
    weights_Y = np.random.default_rng(0).integers(1, 1 << 62, 256, np.uint64)
    kind_S, count = ends_S.astype(np.int64), 0
    while True:
        known = np.append(kind_S, -1).astype(np.uint64) + np.uint64(2)
        sums_S = (known[next_SY] * weights_Y).sum(1, dtype=np.uint64)  # modulo 2^64
        pairs = np.stack([kind_S.astype(np.uint64), sums_S], 1)
        _, first, kind_S = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        kind_S = kind_S.ravel()
        if len(first) == count:
            break
        count = len(first)
    order = np.argsort(first)  # by first appearance: state 0 is in kind 0
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    new_S = np.append(rank[kind_S], -1)
    return new_S[next_SY[first[order]]].astype(np.int32), ends_S[first[order]]
