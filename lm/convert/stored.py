"""Files of tensors, read a few rows at a time as float32: safetensors by its header, PyTorch's without running a pickle."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm.errors import UserError, check

# Names of numbers in a safetensors header that weights may have; what is quantised is no weight as it lies there.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}
HEADER = 100_000_000  # bytes; the format allows no longer one
SAFE_TORCH = (2, 6)  # before it, a file of the old format could run code in spite of weights_only (CVE-2025-32434)


class Source(Protocol):
    """An open file."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        """Read rows [low, high) of a tensor (None: all of it) into an array of its own, float32."""


def open_source(file: Path) -> Source:
    with damaged(file):
        return Pickled(file) if file.suffix == ".bin" else Plain(file)


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
            self.header = json.loads(stream.read(length))
        self.header.pop("__metadata__", None)
        self.begin = 8 + length
        for name, one in self.header.items():
            low, high = one["data_offsets"]
            dtype = FLOATS.get(one["dtype"])
            right = dtype is None or high - low == math.prod(one["shape"]) * np.dtype(numbers(dtype)).itemsize
            check(0 <= low <= high and right, f"{file}: '{name}' has {high - low} bytes, which its shape does not need")
            check(self.begin + high <= size, f"{file} is cut off: '{name}' ends at byte {self.begin + high} of {size}")

    def names(self) -> list[str]:
        return list(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        one, shape = self.header[name], self.shape(name)
        dtype = FLOATS.get(one["dtype"])
        check(dtype is not None, f"{self.file}: '{name}' is {one['dtype']}, not floating point; read what it was made from")
        low, high, _ = slice(low, high).indices(shape[0]) if shape else (0, 1, 1)
        row, kind = math.prod(shape[1:]), np.dtype(numbers(dtype))
        offset = self.begin + one["data_offsets"][0] + low * row * kind.itemsize
        found = np.fromfile(self.file, kind, (high - low) * row, offset=offset)
        check(len(found) == (high - low) * row, f"{self.file} was cut off while it was read")
        if dtype == "bfloat16":  # the upper half of a float32
            upper, found = found, np.zeros(len(found), "<f4")
            found.view("<u2")[1::2] = upper
        return found.astype(np.float32, copy=False).reshape((high - low, *shape[1:]) if shape else ())


def numbers(dtype: str) -> str:
    """Give numpy's name of what lies in the file."""
    return "<u2" if dtype == "bfloat16" else dtype


class Pickled:
    """A PyTorch file by its weights-only reader, which builds tensors and nothing else."""

    def __init__(self, file: Path):
        try:
            import torch
        except ImportError:
            raise UserError(f"{file} is a PyTorch pickle: pip install torch, or convert it to safetensors first") from None
        version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
        check(version >= SAFE_TORCH, f"{file}: torch {torch.__version__} is not safe to read it with; 2.6 or later is")
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the old format cannot be mapped
            found = torch.load(file, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found) if isinstance(found, dict) else found
        wrong = not isinstance(found, dict) or any(not isinstance(x, torch.Tensor) for x in found.values())
        check(not wrong, f"{file} holds more than tensors; it is not read")
        self.file, self.found = file, found

    def names(self) -> list[str]:
        return list(self.found)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.found[name].shape)

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        import torch

        tensor: Any = self.found[name].detach()
        check(tensor.is_floating_point(), f"{self.file}: '{name}' is {tensor.dtype}, not floating point")
        tensor = tensor[low:high] if tensor.ndim else tensor
        return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format).numpy()


@contextlib.contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Turn whatever a reader raises about a file into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch, json and pickle each have their own
        said = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {said}") from None
