"""Regular expressions as deterministic automata over UTF-8 bytes, minimal: Thompson's construction, then subsets.

Python's own parser reads the expression, and every accepted text matches it in full by Python's `re`, with \\d and \\s of
ASCII alone. An automaton has no memory but its state: look-around, references, inner anchors and flags are rejected.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from re import _constants as ops  # type: ignore[attr-defined]  # private: no other parser has its dialect
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np

from lm.decode.grammar.character_ranges import Ranges, byte_ranges, ranges_of
from lm.errors import UserError, check, one_line

# Bounds, each a second of work or less: characters of an expression, and of a stretch without a group; parts (states of the
# non-deterministic automaton) and moves before the subset construction, states after it, parts that it visits.
LONGEST, STRETCH = 400_000, 10_000
PARTS, MOVES, STATES = 500_000, 1_000_000, 20_000
WORK = 5_000_000


def automaton(expression: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Compile an expression: next states (S, 256), -1 for rejection; accepting states (S,). State 0 is the start.

    Raises UserError, which starts with `what`, for an invalid expression or one whose automaton would be too large.
    """
    tree = parsed(expression, what)
    parts = Parts(what)
    try:
        end = parts.sequence(tree, parts.new())
    except RecursionError:
        raise too_deep(what) from None
    return minimal(*parts.subsets(0, end))


def parsed(expression: str, what: str) -> parser.SubPattern:
    """Parse an expression as `re.fullmatch` reads it; raises UserError as `automaton` does."""
    expression = expression.removeprefix("^")
    if expression.endswith("$") and not expression.endswith(r"\$"):
        expression = expression[:-1]
    check(len(expression) <= LONGEST, f"{what} has {len(expression):,} characters, more than {LONGEST:,}; make it shorter")
    # The parser factors out common prefixes of alternatives item by item: in time quadratic in their length.
    longest = max(map(len, STRETCHES.findall(expression)), default=0)
    check(longest <= STRETCH, f"{what} has {longest:,} characters in a row, more than {STRETCH:,}; make it shorter")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sets whose meaning may change in a later version of Python
            tree = parser.parse(expression)
    except RecursionError:
        raise too_deep(what) from None
    except (re.error, ValueError, OverflowError) as error:
        raise UserError(f"{what} is no regular expression: {one_line(str(error), 200)}") from error
    check(not tree.state.flags & ~re.UNICODE.value, f"{what}: flags like (?i) cannot be followed; write both cases")
    return tree


# Characters, sets and escapes between parentheses and bars.
STRETCHES = re.compile(r"(?:[^|()\\\[]|\\.|\[\^?\]?(?:[^\]\\]|\\.)*\]?)+", re.DOTALL)


def too_deep(what: str) -> UserError:
    return UserError(f"{what} is nested too deeply to follow; take some of its brackets away")


class Parts:
    """A non-deterministic automaton: its states are `parts`, with empty moves (`free`) and moves by a range of bytes."""

    def __init__(self, what: str):
        self.what = what
        self.count, self.count_moves = 0, 0
        self.free: dict[int, list[int]] = defaultdict(list)
        self.moves: dict[int, list[tuple[int, int, int]]] = defaultdict(list)

    def new(self) -> int:
        self.fits(1)
        self.count += 1
        return self.count - 1

    def fits(self, more: int) -> None:
        """Raise UserError where `more` parts would pass the bounds."""
        if self.count + more > PARTS or self.count_moves > MOVES:
            raise UserError(f"{self.what} is too long to follow; repeat less")

    def sequence(self, items: Iterable, at: int) -> int:
        """Add items one after another; return the state behind them."""
        for op, argument in items:
            at = self.item(op, argument, at)
        return at

    def item(self, op: Any, argument: Any, at: int) -> int:
        """Add one item of a parsed expression behind a state; return the state behind it."""
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
            least, most, items = argument
            return self.repeat(least, most, items, at)
        return self.character(ranges_of(op, argument, self.what), at)

    def repeat(self, least: int, most: int, items: Iterable, at: int) -> int:
        """Add `least` copies of the items, then a loop, or up to `most - least` optional copies."""
        at = self.copies(least, items, at)[-1]
        if most is ops.MAXREPEAT:
            again, end = self.new(), self.new()
            self.free[at].append(again)
            self.free[self.sequence(items, again)].append(again)
            self.free[again].append(end)
            return end
        ends = self.copies(most - least, items, at)
        end = self.new()
        for state in ends:
            self.free[state].append(end)
        return end

    def copies(self, count: int, items: Iterable, at: int) -> list[int]:
        """Add `count` copies of the items; return the states before, between and behind them."""
        ends = [at]
        for number in range(1, count + 1):
            before = self.count
            ends.append(self.sequence(items, ends[-1]))
            size = self.count - before
            if not size:  # the items match only the empty text
                break
            # The first copy tells the size of all: a repetition too large is refused before it takes the memory.
            self.fits(size * (count - number))
        return ends

    def character(self, ranges: Ranges, at: int) -> int:
        """Add the bytes of any character of the ranges; sequences with the same suffix share its parts."""
        end = self.new()
        known: dict[tuple[tuple[int, int], ...], int] = {}
        for sequence in byte_ranges(tuple(ranges)):
            to = end
            for i in range(len(sequence) - 1, 0, -1):
                tail = tuple(sequence[i:])
                if tail not in known:
                    known[tail] = self.new()
                    self.moves[known[tail]].append((*sequence[i], to))
                    self.count_moves += 1
                to = known[tail]
            self.moves[at].append((*sequence[0], to))
            self.count_moves += 1
        return end

    def subsets(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Determinise by the subset construction: a state is the set of parts that a text may lead to."""
        work = Work(self.what)
        start = self.reach([first], work)
        number, rows, queue = {start: 0}, [], [start]
        for now in queue:  # grows as new subsets appear
            row = np.full(256, -1, np.int32)
            for low, high, parts in self.targets(now, work):
                to = self.reach(parts, work)
                if to not in number:
                    check(len(number) < STATES, f"{self.what} needs too many states; make it simpler")
                    number[to] = len(number)
                    queue.append(to)
                row[low:high] = number[to]
            rows.append(row)
        return np.stack(rows), np.array([end in now for now in queue])

    def targets(self, parts: Iterable[int], work: "Work") -> Iterator[tuple[int, int, list[int]]]:
        """Yield (first byte, byte behind the last, target parts) of ranges with equal targets, sweeping over their ends."""
        begin, stop = defaultdict(list), defaultdict(list)
        for part in parts:
            for low, high, to in self.moves.get(part, ()):
                begin[low].append(to)
                stop[high + 1].append(to)
        live: dict[int, int] = defaultdict(int)  # part -> moves that lead to it
        for low, high in pairwise(sorted({*begin, *stop})):
            for to in begin[low]:
                live[to] += 1
            for to in stop[low]:
                live[to] -= 1
                if not live[to]:
                    del live[to]
            work.add(len(live) + len(begin[low]) + len(stop[low]))
            if live:
                yield low, high, list(live)

    def reach(self, parts: Iterable[int], work: "Work") -> frozenset[int]:
        """Follow the empty moves; keep the parts with moves by bytes, and the accepting ones."""
        seen = set(parts)
        queue = list(seen)
        while queue:
            following = self.free.get(queue.pop(), ())
            work.add(1 + len(following))
            for to in following:
                if to not in seen:
                    seen.add(to)
                    queue.append(to)
        return frozenset(part for part in seen if part in self.moves or part not in self.free)


class Work:
    """A bounded count of steps: a few subsets may be so large that they take minutes."""

    def __init__(self, what: str):
        self.what, self.remaining = what, WORK

    def add(self, steps: int) -> None:
        self.remaining -= steps
        if self.remaining < 0:
            raise UserError(f"{self.what} takes too long to compile; make it simpler, with fewer parts that may be empty")


def characters(items: Iterable, what: str) -> Iterator[Ranges]:
    """Yield the code points of each character of a parsed expression, once for all its repetitions."""
    queue = list(items)
    while queue:
        op, argument = queue.pop()
        if op is ops.BRANCH:
            queue += [item for part in argument[1] for item in part]
        elif op in (ops.SUBPATTERN, ops.MAX_REPEAT, ops.MIN_REPEAT):
            queue += argument[-1]
        else:
            yield ranges_of(op, argument, what)


def minimal(next_SY: np.ndarray, ends_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimise: merge states from which the same texts are accepted; state 0 stays the start.

    Classes are split while their states lead to different ones; the largest part keeps its number, so that a state is
    visited a logarithmic number of times only (Hopcroft 1971).
    """
    rows = np.unique(next_SY, axis=1).tolist()
    before: list[set[int]] = [set() for _ in rows]
    for state, row in enumerate(rows):
        for to in {*row} - {-1}:
            before[to].add(state)
    kind = [*map(int, ends_S), -1]  # -1, rejection, indexes the last
    members = [{state for state in range(len(rows)) if kind[state] == end} for end in (0, 1)]
    fresh = set(range(len(rows)))  # states one of whose next states has another kind than before

    while fresh:
        # States of one class that now lead to different classes part company.
        groups: dict[int, dict[tuple[int, ...], set[int]]] = defaultdict(lambda: defaultdict(set))
        for state in fresh:
            groups[kind[state]][tuple([kind[to] for to in rows[state]])].add(state)
        fresh = set()
        for old, split in groups.items():
            *small, large = sorted(split.values(), key=len)
            remaining = len(members[old]) - sum(map(len, split.values()))  # not fresh, so still alike
            if remaining >= len(large):
                small.append(large)
            elif remaining:
                small.append(members[old].difference(*split.values()))
            for group in small:
                members[old] -= group
                for state in group:
                    kind[state] = len(members)
                    fresh |= before[state]
                members.append(group)

    # Number the classes by first appearance: state 0 is in class 0.
    _, first, kind_S = np.unique(kind[:-1], return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[order] = np.arange(len(first))
    new_S = np.append(rank[kind_S], -1)
    return new_S[next_SY[first[order]]].astype(np.int32), ends_S[first[order]]
