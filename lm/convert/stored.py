"""Files of tensors, read a few rows at a time as float32: safetensors by its header, PyTorch's by `pickled`."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm.convert.pickled import Pickled, as_float32, numbers
from lm.convert.unpickle import whole
from lm.errors import UserError, check, one_line

# Names of numbers in a safetensors header that weights may have; what is quantised is no weight as it lies there.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}
HEADER = 100_000_000  # bytes; the format allows no longer one


class Source(Protocol):
    """An open file."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        """Read rows [low, high) of a tensor (None: all of it) into an array of its own, float32."""


def open_source(file: Path) -> Source:
    with damaged(file):
        found = Pickled(file) if file.suffix == ".bin" else Plain(file)
        odd = next((name for name in found.names() if not name.isprintable() or len(name) > 500), None)
        check(odd is None, f"{file}: {odd!r:.60} is no name of a tensor")
        return found


class Plain:
    """A safetensors file: eight bytes of length, a JSON header, numbers.

    Its library maps the file, so that all that was read counts as memory until it is closed, gives whole tensors twice,
    and has no bfloat16 in numpy; rows are read here with plain seeks.
    """

    def __init__(self, file: Path):
        self.file, size = file, file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            check(size > 8 and length <= min(HEADER, size - 8), f"{file} is cut off, or no safetensors file")
            self.header = json.loads(stream.read(length), object_pairs_hook=unique)
        check(isinstance(self.header, dict), f"{file} has no header of tensors")
        self.header.pop("__metadata__", None)
        check(len(self.header) > 0, f"{file} holds no tensors")
        self.begin = 8 + length
        for name, one in self.header.items():
            low, high = one["data_offsets"]
            dtype, shape = FLOATS.get(one["dtype"]), one["shape"]
            check(all(map(whole, (low, high, *shape))), f"{file}: '{name}' has a size or a place that is no whole number")
            right = dtype is None or high - low == math.prod(shape) * numbers(dtype).itemsize
            check(low <= high and right, f"{file}: '{name}' has {high - low} bytes, which its shape does not need")
            check(self.begin + high <= size, f"{file} is cut off: '{name}' ends at byte {self.begin + high} of {size}")
        places = sorted((*one["data_offsets"], name) for name, one in self.header.items())
        for (_, end, first), (begin, last, second) in itertools.pairwise(places):
            check(end <= begin or begin == last, f"{file}: '{first}' and '{second}' share bytes, which the format forbids")

    def names(self) -> list[str]:
        return list(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        one, shape = self.header[name], self.shape(name)
        dtype = FLOATS.get(one["dtype"])
        check(dtype is not None, f"{self.file}: '{name}' is {one['dtype']}, not floating point; read what it was made from")
        low, high, _ = slice(low, high).indices(shape[0]) if shape else (0, 1, 1)
        row, kind = math.prod(shape[1:]), numbers(dtype)
        offset = self.begin + one["data_offsets"][0] + low * row * kind.itemsize
        found = np.fromfile(self.file, kind, (high - low) * row, offset=offset)
        check(len(found) == (high - low) * row, f"{self.file} was cut off while it was read")
        return as_float32(found, dtype).reshape((high - low, *shape[1:]) if shape else ())


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of a header's pairs; UserError where a name comes twice."""
    found = dict(pairs)
    check(len(found) == len(pairs), "its header has a name twice")
    return found


@contextlib.contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Turn whatever a reader raises about a file into one line."""
    try:
        yield
    except UserError as error:
        raise error if str(file) in str(error) else UserError(f"{file}: {error}") from None
    except OSError:  # of the machine, not of the file: told at the border
        raise
    except Exception as error:  # json, zipfile, struct and pickletools each have their own
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {one_line(str(error), 200)}") from None
