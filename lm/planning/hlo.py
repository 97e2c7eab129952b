"""The text of an optimised XLA program as data: computations, instructions, shapes, and how often each of them runs a step.

jax hands out no structured form of a compiled program, and XLA's own cost analysis counts the body of a loop once, which
understates a scan over the layers by their number.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lm.errors import check

BITS = {"pred": 8, "c64": 64, "c128": 128, "bf16": 16, "token": 0, "opaque": 0}
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
# Their computations combine two numbers, and are no work of their own.
SCALAR = {"reduce", "reduce-window", "all-reduce", "all-reduce-start", "reduce-scatter", "scatter", "select-and-scatter",
          "sort", "map", "custom-call"}  # fmt: skip
CALLS = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """An array of the program; `space` 0 is the device's main memory (HBM), others lie on the chip."""

    dtype: str
    sizes: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.dtype)
        if bits is None:
            digits = re.search(r"\d+", self.dtype)
            bits = int(digits[0]) if digits else 0
        return -(-math.prod(self.sizes) * bits // 8)


@dataclass(frozen=True)
class Instruction:
    """One line: its name, operation, resulting arrays, operands by name, and attributes as text."""

    name: str
    operation: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self) -> list[str]:
        """Return the computations that this instruction runs."""
        names = []
        for one, several in CALLS.findall(self.attributes):
            names += [one] if one else [name.strip().lstrip("%") for name in several.split(",")]
        return names


@dataclass(frozen=True)
class Run:
    """A computation, the number of its runs a step, whether in a loop, and whether as a part of one fused kernel.

    `caller`: the loop body or entry that it belongs to.
    """

    computation: dict[str, Instruction]
    name: str
    times: int
    looped: bool
    fused: bool
    caller: str


@dataclass(frozen=True)
class Program:
    """Computations by name, each a mapping from names to instructions in the order of the text."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def runs(self) -> Iterator[Run]:
        """Yield every computation that runs, once for each place that calls it."""
        queue = [Run(self.computations[self.entry], self.entry, 1, False, False, self.entry)]
        while queue:
            run = queue.pop()
            yield run
            for instruction in run.computation.values():
                for name in instruction.called():
                    if name not in self.computations or instruction.operation in SCALAR:
                        continue
                    inner = dataclasses.replace(run, computation=self.computations[name], name=name)
                    if instruction.operation == "while":
                        times = run.times * self.trips(instruction)
                        inner = dataclasses.replace(inner, times=times, looped=True, caller=name)
                    fused = run.fused or instruction.operation == "fusion"
                    queue.append(dataclasses.replace(inner, fused=fused))

    def trips(self, loop: Instruction) -> int:
        """Return the number of passes of a loop: XLA's own note of it, else the bound that its condition compares with.

        A scan counts from 0 in steps of 1, so that the bound is the number.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        lines = self.computations[condition[1]].values() if condition else ()
        bounds = [int(line.attributes) for line in lines if line.operation == "constant" and line.attributes.isdecimal()]
        return max(bounds, default=1)


def closing(text: str, start: int) -> int:
    """Return the position behind the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)


def shapes_of(text: str) -> tuple[Shape, ...]:
    """Return the arrays of a type, those of a tuple in order."""
    found = []
    for dtype, sizes, layout in SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        numbers = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        found.append(Shape(dtype, numbers, int(space[1]) if space else 0))
    return tuple(found)


def instruction_of(line: str) -> Instruction | None:
    """Parse one line of a computation; None where it holds no instruction."""
    match = LINE.match(line)
    if not match:
        return None
    start = match.end()
    end = closing(line, start) if line[start] == "(" else line.index(" ", start)
    bracket = line.find("(", end)
    if bracket < 0:
        return None
    stop = closing(line, bracket)
    operation, inside, rest = line[end:bracket].strip(), line[bracket + 1 : stop - 1], line[stop:]
    operands = () if operation == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    attributes = inside.strip() if operation == "constant" else rest
    return Instruction(match[2], operation, shapes_of(line[start:end]), operands, attributes, bool(match[1]))


def program_of(text: str) -> Program:
    """Parse the text of `jax.stages.Compiled.as_text()`."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif instruction := instruction_of(line):
            current[instruction.name] = instruction
    check(entry, "the compiler returned a program without an entry: this version of jax is not supported here")
    return Program(computations, entry)
