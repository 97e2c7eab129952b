"""Files of tensors, read a few rows at a time as float32: safetensors by its header, PyTorch's by `pickled`."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import safe_open

from lm.convert.pickled import Pickled, as_float32, numbers
from lm.errors import UserError, check, one_line

# dtype in a safetensors header -> numpy's; quantised types are no weights without their scales.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}


class Source(Protocol):
    """An open file of tensors."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        """Read rows [low, high) of a tensor (None: all) as a float32 copy."""


def open_source(file: Path) -> Source:
    with damaged(file):
        source = Pickled(file) if file.suffix == ".bin" else Plain(file)
        odd = next((name for name in source.names() if not name.isprintable() or len(name) > 500), None)
        check(odd is None, f"{file}: {odd!r:.60} is no name of a tensor")
        return source


class Plain:
    """A safetensors file: the library checks the header, the numbers are read with plain seeks.

    The library's own slices map the file: all of it counts as memory until it is closed (+473 MiB where seeks take none),
    and a file truncated meanwhile ends the process by SIGBUS.
    """

    def __init__(self, file: Path):
        self.file = file
        with safe_open(file, "numpy"):  # raises for types, shapes, offsets and gaps that the format does not allow
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            self.header = json.loads(stream.read(length))
        self.header.pop("__metadata__", None)
        check(len(self.header) > 0, f"{file} holds no tensors")
        self.start = 8 + length

    def names(self) -> list[str]:
        return list(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        entry, shape = self.header[name], self.shape(name)
        dtype = FLOATS.get(entry["dtype"])
        check(dtype is not None, f"{self.file}: '{name}' is {entry['dtype']}, not floating point; read its original")
        low, high, _ = slice(low, high).indices(shape[0]) if shape else (0, 1, 1)
        row, kind = math.prod(shape[1:]), numbers(dtype)
        offset = self.start + entry["data_offsets"][0] + low * row * kind.itemsize
        values = np.fromfile(self.file, kind, (high - low) * row, offset=offset)
        check(len(values) == (high - low) * row, f"{self.file} was cut off while it was read")
        return as_float32(values, dtype).reshape((high - low, *shape[1:]) if shape else ())


@contextlib.contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Turn any exception of a reader into a UserError of one line."""
    try:
        yield
    except UserError as error:
        raise error if str(file) in str(error) else UserError(f"{file}: {error}") from None
    except OSError:  # of the machine, not of the file: main reports those
        raise
    except Exception as error:  # safetensors, zipfile, struct and pickletools each have their own
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {one_line(str(error), 200)}") from None
