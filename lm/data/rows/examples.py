"""Rows of labelled examples: as many as fit, best fit first; a record kind like `lm.data.rows.records.Windows`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.types import Example, ExampleSet
from lm.errors import UserError, check


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows of `length` tokens with as many examples as fit, with `pack`; else one.

    `sizes` returns the parts of an example (the windows of a long text) as (tokens, targets); parts are packed
    independently. A record is {"examples": [(Example, number of the part), ...], "room": the most targets in any row of the
    stream}. `field` is the config field of `length`, for errors.

    Every epoch permutes parts of about the same length (rounded up by at most a sixteenth): rows are as full and as many as
    in the first epoch, and any row of any epoch is found in constant time.
    """

    length: int | tuple[int, ...]
    sizes: Callable[[Example], list[tuple[Any, int]]]
    pack: bool = True
    field: str = "objective.rows.row"

    order = "shuffled"
    copies = 0

    @property
    def tokens(self) -> int:
        return int(np.sum(self.length))

    def open(self, examples: ExampleSet, packing: str = "documents", seed: int = 0) -> ExampleStream:
        if not isinstance(examples, ExampleSet):
            raise UserError(
                "this objective learns from labelled examples, not running text: data.source is one of Labelled, "
                "Columns, Entities, Questions, TfdsExamples"
            )
        return ExampleStream(self, examples, seed)


class ExampleStream:
    """The parts of one side of a split in rows."""

    def __init__(self, spec: Examples, examples: ExampleSet, seed: int):
        self.examples, self.seed = examples.examples, seed
        found = [(i, part, size) for i, one in enumerate(self.examples) for part, size in enumerate(spec.sizes(one))]
        limits = np.atleast_1d(spec.length)
        self.parts = np.array([(i, part) for i, part, _ in found], np.int64).reshape(-1, 2)
        sizes = np.array([tokens for *_, (tokens, _) in found], np.int64).reshape(-1, len(limits))
        asked = np.array([places for *_, (_, places) in found], np.int64)
        for i, size in zip(self.parts[(sizes > limits).any(1), 0][:1], sizes[(sizes > limits).any(1)]):
            raise UserError(
                f"{self.examples[i].where}: {_sum(size)} tokens, more than a row of {_sum(limits)}; raise {spec.field}, "
                "leave it out of the config to have it chosen, or shorten the example"
            )
        # Packed by rounded sizes: any part of a class fits where any other of it was.
        rounded = np.minimum(limits, -(-sizes // np.maximum(1, sizes // 16)) * np.maximum(1, sizes // 16))
        if spec.pack:
            order = np.random.default_rng([seed % 2**32, 1]).permutation(len(found))
            self.rows = [np.array(row, np.int64) for row in fill_rows(rounded, order, limits)]
            self.classes = np.unique(rounded, axis=0, return_inverse=True)[1].reshape(-1)
        else:
            self.classes, self.rows = np.zeros(len(found), np.int64), [np.array([k], np.int64) for k in range(len(found))]
        self.count = self.once = len(self.rows)
        # Later epochs exchange parts of a class, so a row must have room for the most targets of each.
        most = np.zeros(int(self.classes.max(initial=0)) + 1, np.int64)
        np.maximum.at(most, self.classes, asked)
        self.room = max((int(most[self.classes[row]].sum()) for row in self.rows), default=1)
        self.filled = sizes.sum() / max(1, self.count * limits.sum())
        self.exchange = functools.lru_cache(maxsize=4)(self._exchange)

    def _exchange(self, epoch: int) -> np.ndarray:
        """Shuffle the parts within their length classes: a permutation of this epoch, int64 [parts]."""
        draws = np.random.default_rng([self.seed % 2**32, 2, epoch]).random(len(self.classes))
        order = np.empty(len(self.classes), np.int64)
        # Both orders list class after class, so each part takes the place of one of its own class.
        order[np.argsort(self.classes, kind="stable")] = np.lexsort((draws, self.classes))
        return order

    def at(self, number: int, epoch: int) -> int:
        return epoch * self.count + number

    def record(self, rng: np.random.Generator, at: int) -> dict[str, Any]:
        epoch, row = divmod(at, self.count)
        return self._record(self.exchange(epoch)[self.rows[row]] if epoch else self.rows[row])

    def held_out(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
        return self._record(self.rows[number])

    def _record(self, parts: np.ndarray) -> dict[str, Any]:
        examples = [(self.examples[i], part) for i, part in self.parts[parts].tolist()]
        return {"examples": examples, "room": self.room}


def _sum(sizes: np.ndarray) -> str:
    """Format the tokens of one side, or of two."""
    return " + ".join(map(str, np.asarray(sizes).tolist()))


def fill_rows(sizes: np.ndarray, order: np.ndarray, limits: np.ndarray) -> list[list[int]]:
    """Pack parts of these sizes [N, sides] into rows; return the numbers of the parts in each."""
    return best_fit(sizes[:, 0], order, int(limits[0])) if len(limits) == 1 else balanced_fit(sizes, order, limits)


def balanced_fit(sizes: np.ndarray, order: np.ndarray, limits: np.ndarray, open_rows: int = 256) -> list[list[int]]:
    """Pack parts of several sides, each into the row with the least remaining capacity: the sum of squared shares.

    The norm-based rule of Panigrahy et al. 2011 (Heuristics for vector bin packing). Of more than `open_rows` rows the
    fullest is closed.
    """
    rows: list[list[int]] = []
    numbers: list[int] = []
    room = np.zeros((0, len(limits)))
    for k in order.tolist():
        left = room - sizes[k]
        cost = np.where((left >= 0).all(1), ((left / limits) ** 2).sum(1), np.inf)
        at = int(cost.argmin()) if len(cost) else -1
        if at < 0 or cost[at] == np.inf:
            if len(numbers) == open_rows:
                # A row is as full as its fullest side: nothing fits in behind that.
                full = int((room / limits).min(1).argmin())
                room, _ = np.delete(room, full, 0), numbers.pop(full)
            room, at = np.concatenate([room, limits[None].astype(float)]), len(numbers)
            numbers.append(len(rows))
            rows.append([])
        rows[numbers[at]].append(k)
        room[at] -= sizes[k]
    return rows


def best_fit(sizes: np.ndarray, order: np.ndarray, length: int) -> list[list[int]]:
    """Pack by best fit: each size, in that order, into the row with the least sufficient capacity.

    Bit r of a mask is set when a row has capacity r: the search takes constant time in the number of rows.
    """
    rows: list[list[int]] = []
    waiting: list[list[int]] = [[] for _ in range(length + 1)]
    mask = 0
    for k in order.tolist():
        size = int(sizes[k])
        fits = mask >> size
        if fits:
            # The lowest set bit is the least capacity that suffices.
            room = size + (fits & -fits).bit_length() - 1
            row = waiting[room].pop()
            mask ^= 0 if waiting[room] else 1 << room
        else:
            row, room = len(rows), length
            rows.append([])
        rows[row].append(k)
        room -= size
        if room:
            waiting[room].append(row)
            mask |= 1 << room
    return rows


def row_length(sizes: Sequence[int], length: int, least: int = 1, goal: float = 0.9) -> int:
    """Choose the length of a row for parts of these sizes: `length`, or two or four times it where rows would be too empty."""
    table, best = np.array(sizes, np.int64), (-1.0, length)
    check(len(table) > 0, "no example to pack")
    for times in (1, 2, 4):
        row = times * length
        if row < least:
            continue
        count = len(best_fit(table, np.random.default_rng(0).permutation(len(table)), row))
        filled = float(table.sum() / (count * row))
        if filled >= goal:
            return row
        best = max(best, (filled, row), key=lambda pair: pair[0])
    return best[1]


def pair_lengths(
    sizes: Sequence[Any], limits: tuple[int, ...], least: Sequence[int] = (0,), goal: float = 0.9
) -> tuple[int, ...]:
    """Choose the length of a row on each side, for parts of these sizes: the sides as long as the parts are on average.

    The longer side is its limit, or two or four times it where rows would be too empty; multiples of 8. Each side has at
    least the tokens of the longest part, and `least`.
    """
    table = np.array(sizes, np.int64).reshape(-1, len(limits))
    check(len(table) > 0, "no example to pack")
    order, best = np.random.default_rng(0).permutation(len(table)), (-1.0, tuple(limits))
    shares, longest, lowest = table.sum(0) / table.sum(0).max(), np.array(limits), np.maximum(table.max(0), least)
    for times in (1, 2, 4):
        row = np.maximum(longest[shares.argmax()] * times * shares, lowest)
        row = (-(-row // 8) * 8).astype(np.int64)
        filled = float(table.sum() / (len(fill_rows(table, order, row)) * row.sum()))
        best = max(best, (filled, tuple(row.tolist())), key=lambda pair: pair[0])
        if filled >= goal:
            break
    return best[1]


@dataclass(frozen=True, kw_only=True)
class Parted:
    """Rows of task k by `parts[k]`; a record is the task's, with "part": k.

    `order="tasks"`: all rows of a step are of one task. `shares` are those of the steps.
    """

    parts: tuple[Examples, ...]
    shares: tuple[float, ...]

    order = "tasks"
    copies = 0

    @property
    def tokens(self) -> int:
        """Tokens of a row, on average."""
        return round(sum(share * part.tokens for share, part in zip(self.shares, self.parts, strict=True)))

    def open(self, examples: ExampleSet, packing: str = "documents", seed: int = 0) -> TaskStream:
        numbers = {example.part for example in examples.examples}
        if len(numbers) != 1:
            raise ValueError(f"{examples.name} holds examples of {len(numbers)} tasks: each is opened by itself")
        (number,) = numbers
        return TaskStream(number, self.parts[number].open(examples, packing, seed))


class TaskStream:
    """The rows of one task."""

    def __init__(self, part: int, stream: ExampleStream):
        self.part, self.stream, self.examples = part, stream, stream.examples
        self.count, self.once, self.at = stream.count, stream.once, stream.at

    def record(self, rng: np.random.Generator, at: int) -> dict[str, Any]:
        return {**self.stream.record(rng, at), "part": self.part}

    def held_out(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
        return {**self.stream.held_out(rng, number), "part": self.part}
