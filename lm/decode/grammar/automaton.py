"""Regular expressions as deterministic automata over UTF-8 bytes, minimal: Thompson's construction, then subsets.

Python's own parser reads the expression, and every text that is followed matches it in full by Python's `re`. \\d and \\s are
ASCII alone. An automaton remembers nothing but its state: look-around, references, anchors inside and flags are refused.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from re import _constants as ops
from re import _parser as parser

import numpy as np

from lm.decode.grammar.character_ranges import Ranges, byte_ranges, ranges_of
from lm.errors import UserError, check, one_line

# Bounds, each of a second or less of work: characters of an expression, and of one stretch of it without a group; parts
# and moves of the automaton before the construction of subsets, states after it, parts that the construction looks at.
LONGEST, STRETCH = 400_000, 10_000
PARTS, MOVES, STATES = 500_000, 1_000_000, 20_000
WORK = 5_000_000


def automaton(expression: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Compile an expression: next (S, 256), -1 where nothing follows; which states may be the end. State 0 is first.

    Raises UserError, which begins with `what`, for an expression that is wrong or that no automaton of a bearable size follows.
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
    # The parser takes what alternatives begin with in common off them item by item: the time is the square of that.
    longest = max(map(len, STRETCHES.findall(expression)), default=0)
    check(longest <= STRETCH, f"{what} has {longest:,} characters in a row, more than {STRETCH:,}; make it shorter")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that may mean something else in a later version of Python
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
    """A non-deterministic automaton: free moves, and moves by a range of bytes."""

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
        """Raise UserError where that many more parts are too many."""
        if self.count + more > PARTS or self.count_moves > MOVES:
            raise UserError(f"{self.what} is too long to follow; repeat less")

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
        return self.character(ranges_of(op, argument, self.what), at)

    def repeat(self, least: int, most: int, items: Iterable, at: int) -> int:
        at = self.copies(least, items, at)[-1]
        if most is ops.MAXREPEAT:
            again, end = self.new(), self.new()
            self.free[at].append(again)
            self.free[self.sequence(items, again)].append(again)
            self.free[again].append(end)
            return end
        ends = self.copies(most - least, items, at)
        end = self.new()
        for one in ends:
            self.free[one].append(end)
        return end

    def copies(self, count: int, items: Iterable, at: int) -> list[int]:
        """Add the same thing again and again; return the states before, between and behind its copies."""
        ends = [at]
        for number in range(1, count + 1):
            before = self.count
            ends.append(self.sequence(items, ends[-1]))
            size = self.count - before
            if not size:  # it matches nothing, however often
                break
            self.fits(size * (count - number))
        return ends

    def character(self, ranges: Ranges, at: int) -> int:
        """Add the bytes of any character of the ranges; sequences that end alike share the parts of their ends."""
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
        """Make it deterministic: its states are the sets of parts that a text may lead to."""
        work = Work(self.what)
        start = self.reach([first], work)
        number, rows, queue = {start: 0}, [], [start]
        for now in queue:  # grows
            row = np.full(256, -1, np.int32)
            for low, high, to in self.targets(now, work):
                to = self.reach(to, work)
                if to not in number:
                    check(len(number) < STATES, f"{self.what} needs too many states; make it simpler")
                    number[to] = len(number)
                    queue.append(to)
                row[low:high] = number[to]
            rows.append(row)
        return np.stack(rows), np.array([end in now for now in queue])

    def targets(self, parts: Iterable[int], work: "Work") -> Iterator[tuple[int, int, list[int]]]:
        """Yield (first byte, byte behind the last, parts that they lead to), sweeping over the moves' ends."""
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
        """Follow the free moves; keep the parts that matter: those with moves, and the ends."""
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
    """A count of steps with a bound: sets of parts may be few and yet so large that they take minutes."""

    def __init__(self, what: str):
        self.what, self.left = what, WORK

    def add(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise UserError(f"{self.what} takes too long to compile; make it simpler, with fewer parts that may be empty")


def characters(items: Iterable, what: str) -> Iterator[Ranges]:
    """Yield the code points of each character of a parsed expression, once however often it is repeated."""
    queue = list(items)
    while queue:
        op, argument = queue.pop()
        if op is ops.BRANCH:
            queue += [one for part in argument[1] for one in part]
        elif op in (ops.SUBPATTERN, ops.MAX_REPEAT, ops.MIN_REPEAT):
            queue += argument[-1]
        else:
            yield ranges_of(op, argument, what)


def minimal(next_SY: np.ndarray, ends_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join states that the same texts lead from to an end; the first stays the first.

    Classes are split as long as their states lead to different ones; the largest part keeps its number, so that a state is
    looked at again a logarithmic number of times only (Hopcroft 1971).
    """
    rows = np.unique(next_SY, axis=1).tolist()
    before: list[set[int]] = [set() for _ in rows]
    for state, row in enumerate(rows):
        for to in {*row} - {-1}:
            before[to].add(state)
    kind = [*map(int, ends_S), -1]  # that of -1, no state, stands last
    members = [{state for state in range(len(rows)) if kind[state] == end} for end in (0, 1)]
    fresh = set(range(len(rows)))  # states one of whose next states has another kind than before
    while fresh:
        groups: dict[int, dict[tuple[int, ...], set[int]]] = defaultdict(lambda: defaultdict(set))
        for state in fresh:
            groups[kind[state]][tuple([kind[to] for to in rows[state]])].add(state)
        fresh = set()
        for old, found in groups.items():
            *small, large = sorted(found.values(), key=len)
            remaining = len(members[old]) - sum(map(len, found.values()))  # not fresh, so still alike
            if remaining >= len(large):
                small.append(large)
            elif remaining:
                small.append(members[old].difference(*found.values()))
            for group in small:
                members[old] -= group
                for state in group:
                    kind[state] = len(members)
                    fresh |= before[state]
                members.append(group)
    _, first, kind_S = np.unique(kind[:-1], return_index=True, return_inverse=True)
    order = np.argsort(first)  # by first appearance: state 0 is in kind 0
    rank = np.empty(len(first), np.int64)
    rank[order] = np.arange(len(first))
    new_S = np.append(rank[kind_S], -1)
    return new_S[next_SY[first[order]]].astype(np.int32), ends_S[first[order]]
