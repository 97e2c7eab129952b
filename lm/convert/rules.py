"""The two-way table: which of our parameters is which of their tensors, and how the numbers lie in each.

A family is a list of `Rule`s. Reading and writing go through the same list, so what is read is written back bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from lm.errors import check


class Rule(NamedTuple):
    """One of our leaves and one of their tensors; `{i}` in `theirs` is the layer, which ours stacks on its first axis.

    `form`: "linear" is (outputs, inputs) there and inputs first here; "conv" is a matrix that lies as ours; "vector" has
    one axis there (a bias); "same" is any other array. `inputs`: how many of our leaf's axes are inputs. `part` (k, n):
    theirs holds n of ours side by side along its outputs, this being number k. `lead`: axes of size 1 that theirs has in
    front.
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
        """Tell what has a row for each token of the vocabulary, of which ours may have more."""
        return self.form == "same" and re.search(r"(^|/)(embed/table\d*|output/table|head_bias)$", self.ours) is not None

    def name(self, layer: int) -> str:
        return self.theirs.replace("{i}", str(layer))

    def take(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Turn theirs into ours, of `shape` (without the layers' axis)."""
        array = array.reshape(array.shape[self.lead :])
        array = array.T if self.form == "linear" else array
        number, parts = self.part
        if parts > 1:
            size = array.shape[-1] // parts
            array = array[..., number * size : (number + 1) * size]
        check(array.size == math.prod(shape), f"'{self.theirs}' has {array.size:,} numbers where {shape} are asked for")
        return array.reshape(shape)

    def alike(self, theirs: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Tell whether each row of theirs is a row of ours."""
        return theirs[1:] == shape[1:] and len(theirs) > 1 and (self.padded or theirs[0] == shape[0])

    def rows(self, theirs: int, shape: tuple[int, ...]) -> int:
        """Say how many rows of ours a tensor of `theirs` rows fills: fewer than all in a padded vocabulary only."""
        check(theirs <= shape[0] or not self.padded, f"'{self.theirs}' has {theirs:,} numbers where {shape} are asked for")
        return theirs if self.padded else shape[0]

    def give(self, array: np.ndarray) -> np.ndarray:
        """Turn ours into theirs, or into its part of theirs, outputs last."""
        if self.form == "vector":
            return array.reshape(-1)
        return array if self.form == "same" else array.reshape(math.prod(array.shape[: self.inputs]), -1)

    def finish(self, array: np.ndarray) -> np.ndarray:
        """End what `give` began, once the parts are together."""
        array = array.T if self.form == "linear" else array
        return np.ascontiguousarray(array.reshape(*[1] * self.lead, *array.shape))


def missing(rules: Iterable[Rule], tensors: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[set[str], set[str]]:
    """Compare a table with a file: (our leaves that it cannot fill, its names that the table does not know)."""
    known, have = set(), set(tensors)
    lacking = set(shapes)
    for rule in rules:
        if rule.ours not in shapes:
            continue
        names = {rule.name(i) for i in range(shapes[rule.ours][0])} if rule.layered else {rule.theirs}
        known |= names
        if names <= have:
            lacking.discard(rule.ours)
    return lacking, have - known


PIECE = 1 << 22  # bytes of one of our leaves that are in host memory at a time, where a tensor of theirs is not larger


class Rows(Protocol):
    """Names to tensors that are read a few rows at a time, as `Folder` has them."""

    def __getitem__(self, name: str) -> np.ndarray: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def rows(self, name: str, low: int, high: int) -> np.ndarray: ...


def blocks(rule: Rule, tensors: Rows, shape: tuple[int, ...], most: int = PIECE) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) of one of our leaves of `shape`, float32, in blocks of its first axis that fit `most` bytes.

    A layer is never cut, and a matrix that lies otherwise there is read whole.
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


def read(rule: Rule, tensors: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Fill one of our leaves, float32 of `shape`; rows that theirs has fewer of (a padded vocabulary) are 0."""
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
    """Yield their tensors from ours, parts put together."""
    groups: dict[str, list[Rule]] = {}
    for rule in rules:
        if rule.ours in leaves:
            groups.setdefault(rule.theirs, []).append(rule)
    for parts in groups.values():
        parts = sorted(parts, key=lambda rule: rule.part)
        check(len(parts) == parts[0].part[1], f"'{parts[0].theirs}' has {parts[0].part[1]} parts; {len(parts)} are at hand")
        for i in range(len(leaves[parts[0].ours])) if parts[0].layered else (0,):
            arrays = [rule.give(leaves[rule.ours][i] if rule.layered else leaves[rule.ours]) for rule in parts]
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
    found = [Rule(f"{ours}/kernel", f"{theirs}.weight", form=form, inputs=inputs, part=part)]
    return [*found, Rule(f"{ours}/bias", f"{theirs}.bias", form="vector", part=part)] if bias else found


def normal(ours: str, theirs: str, *, bias: bool = True) -> list[Rule]:
    """Rules of a norm."""
    found = [Rule(f"{ours}/scale", f"{theirs}.weight")]
    return [*found, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else found
