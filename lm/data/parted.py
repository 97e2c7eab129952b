"""Labelled examples of several tasks, each in rows of its own kind; a record kind like `lm.data.packed.Examples`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.examples import ExampleSet
from lm.data.packed import Examples, ExampleStream


@dataclass(frozen=True, kw_only=True)
class Parted:
    """Rows of task k as `parts[k]` lays them; a record is that of the task, and "part": k.

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
