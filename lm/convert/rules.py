"""The two-way table of our parameters and their tensors, with the memory layout of each.

A family is a list of `Rule`s. Reading and writing use the same list, so a folder is written back bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from lm.errors import check


class Rule(NamedTuple):
    """One of our leaves and one of their tensors; `{i}` in `theirs` is the layer, stacked on the first axis of ours.

    `form`: "linear" is (outputs, inputs) there and inputs first here; "conv" is a matrix with inputs first in both;
    "vector" has one axis there (a bias); "same" is any other array. `inputs`: number of input axes of our leaf. `part`
    (k, n): theirs concatenates n of ours along its outputs, this is number k. `lead`: leading axes of size 1 in theirs.
    """

    ours: str
    theirs: str
    form: Literal["linear", "conv", "vector", "same"] = "same"
    inputs: int = 1
    part: tuple[int, int] = (0, 1)
    lead: int = 0

    @property
    def layered(self) -> bool:
        return "{i}" in self.theirs

    @property
    def padded(self) -> bool:
        """Whether the leaf has a row per token of the vocabulary, perhaps padded."""
        return self.form == "same" and re.search(r"(^|/)(embed/table\d*|output/table|head_bias)$", self.ours) is not None

    def name(self, layer: int) -> str:
        return self.theirs.replace("{i}", str(layer))

    def take(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Convert theirs to ours, of `shape` (without the layers' axis)."""
        own: tuple[int, ...] = array.shape[self.lead :]
        array = array.reshape(own)
        # Transposed before it is cut: parts are concatenated along the outputs, which then come last. The heads' axis
        # needs no further move, as each head has consecutive outputs.
        array = array.T if self.form == "linear" else array
        number, parts = self.part
        if parts > 1:
            size = array.shape[-1] // parts
            array = array[..., number * size : (number + 1) * size]
        check(array.size == math.prod(shape), f"'{self.theirs}' has {array.size:,} numbers where {shape} are needed")
        return array.reshape(shape)

    def alike(self, theirs: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether each row of theirs is a row of ours."""
        return theirs[1:] == shape[1:] and len(theirs) > 1 and (self.padded or theirs[0] == shape[0])

    def rows(self, theirs: int, shape: tuple[int, ...]) -> int:
        """Return the rows of ours that a tensor of `theirs` rows fills: all but in a padded vocabulary."""
        check(theirs <= shape[0] or not self.padded, f"'{self.theirs}' has {theirs:,} numbers where {shape} are asked for")
        return theirs if self.padded else shape[0]

    def exported(self, array: np.ndarray) -> np.ndarray:
        """Convert ours to theirs, or to its part of theirs, outputs last."""
        if self.form == "vector":
            return array.reshape(-1)
        return array if self.form == "same" else array.reshape(math.prod(array.shape[: self.inputs]), -1)

    def finish(self, array: np.ndarray) -> np.ndarray:
        """Convert the concatenated parts, as `exported` returns them, to the layout of the file."""
        array = array.T if self.form == "linear" else array
        return np.ascontiguousarray(array.reshape(*[1] * self.lead, *array.shape))


def missing(rules: Iterable[Rule], tensors: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[set[str], set[str]]:
    """Compare a table with a file: (our leaves that it cannot fill, its tensors without a rule)."""
    known, have = set(), set(tensors)
    lacking = set(shapes)
    for rule in rules:
        if rule.ours not in shapes:
            continue
        names = {rule.name(i) for i in range(shapes[rule.ours][0])} if rule.layered else {rule.theirs}
        known |= names
        # A stacked leaf counts only with all of its layers: a file cut short lacks it.
        if names <= have:
            lacking.discard(rule.ours)
    return lacking, have - known


PIECE = 1 << 22  # bytes of a leaf in host memory at a time, unless one tensor of theirs is larger


class Rows(Protocol):
    """Tensors by name, read a few rows at a time (`Folder`)."""

    def __getitem__(self, name: str) -> np.ndarray: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def rows(self, name: str, low: int, high: int) -> np.ndarray: ...


def blocks(rule: Rule, tensors: Rows, shape: tuple[int, ...], most: int = PIECE) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) of one of our leaves of `shape`, float32, in blocks of its first axis that fit `most` bytes.

    A layer is never split, and a matrix of another layout is read whole.
    """
    row = 4 * math.prod(shape[1:])
    if not shape or shape[0] * row <= most:
        yield 0, read(rule, tensors, shape)
    elif rule.layered:
        for i in range(shape[0]):
            yield i, np.ascontiguousarray(rule.take(tensors[rule.name(i)], shape[1:])[None])
    elif rule.form == "same" and not rule.lead and rule.alike(tensors.shape(rule.theirs), shape):
        size, step = rule.rows(tensors.shape(rule.theirs)[0], shape), max(1, most // row)
        for low in range(0, size, step):
            high = min(low + step, size)
            yield low, np.ascontiguousarray(rule.take(tensors.rows(rule.theirs, low, high), (high - low, *shape[1:])))
    else:
        yield 0, read(rule, tensors, shape)


def read(rule: Rule, tensors: Rows | Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Read one of our leaves, float32 of `shape`; rows that pad a vocabulary are 0."""
    leaf = np.zeros(shape, np.float32)
    if rule.layered:
        for i in range(shape[0]):
            leaf[i] = rule.take(tensors[rule.name(i)], shape[1:])
        return leaf
    array = tensors[rule.theirs]
    if not shape:
        return rule.take(array, shape)
    rows = rule.rows(array.shape[rule.lead] if array.ndim > rule.lead else 1, shape)
    leaf[:rows] = rule.take(array, (rows, *shape[1:]))
    return leaf


def write(rules: Iterable[Rule], leaves: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield their tensors from ours, parts concatenated."""
    groups: dict[str, list[Rule]] = {}
    for rule in rules:
        if rule.ours in leaves:
            groups.setdefault(rule.theirs, []).append(rule)
    for parts in groups.values():
        # In the order of theirs, whatever the order of the rules; an incomplete tensor would shift every part behind
        # the gap.
        parts = sorted(parts, key=lambda rule: rule.part)
        check(len(parts) == parts[0].part[1], f"'{parts[0].theirs}' has {parts[0].part[1]} parts; {len(parts)} are at hand")
        for i in range(len(leaves[parts[0].ours])) if parts[0].layered else (0,):
            arrays = [rule.exported(leaves[rule.ours][i] if rule.layered else leaves[rule.ours]) for rule in parts]
            yield parts[0].name(i), parts[0].finish(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, -1))


def dense(
    ours: str,
    theirs: str,
    *,
    bias: bool = True,
    form: Literal["linear", "conv"] = "linear",
    inputs: int = 1,
    part: tuple[int, int] = (0, 1),
) -> list[Rule]:
    """Rules of a `Linear` layer and a torch linear (or, with form="conv", GPT's Conv1D)."""
    rules = [Rule(f"{ours}/kernel", f"{theirs}.weight", form=form, inputs=inputs, part=part)]
    return [*rules, Rule(f"{ours}/bias", f"{theirs}.bias", form="vector", part=part)] if bias else rules


def normal(ours: str, theirs: str, *, bias: bool = True) -> list[Rule]:
    """Rules of a norm."""
    rules = [Rule(f"{ours}/scale", f"{theirs}.weight")]
    return [*rules, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else rules
