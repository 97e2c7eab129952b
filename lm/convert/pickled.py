"""Read PyTorch's files of tensors without PyTorch, and without running what a pickle says.

A file is a zip of a pickle and one record a storage (`torch.save` since 1.6), or (older) five pickles and the storages
behind them. A pickle is a program for a stack machine; this one knows the instructions that build dictionaries of tensors,
and calls nothing: a class or function with another name than those of CALLS ends the reading. What a tensor claims is
compared with what the file holds before any number is read, so that no claim costs memory.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from lm.errors import UserError, check

# Storage classes of torch: numpy's name of the numbers. bfloat16 lies there as two bytes.
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
}  # fmt: skip
FLOATING = {"<f8", "<f4", "<f2", "bfloat16"}
ORDERED, TENSOR, PARAMETER = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
CALLS = {ORDERED, TENSOR, PARAMETER}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the old format
STEPS, BYTES = 4_000_000, 1 << 28  # instructions and bytes of a pickle; a tensor takes about fifty and two hundred
MARKS = 1000  # open brackets at a time; tensors in a dictionary need about ten
OVERLAP = 1 << 24  # numbers that a view which repeats its storage may have
OLD = "save it again: torch.save(torch.load(FILE, weights_only=True), FILE)"


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names: never looked up."""

    name: str


@dataclass(frozen=True)
class Stored:
    """A storage that a tensor views: `size` numbers of `dtype` in the record `key`."""

    dtype: str
    key: str
    size: int


@dataclass(frozen=True)
class View:
    """A tensor: `offset` and `strides` count numbers of its storage."""

    storage: Stored
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def span(self) -> int:
        """Count the storage's numbers from the view's first to its last."""
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides)) if math.prod(self.shape) else 0

    def rows(self, low: int | None, high: int | None) -> View:
        """Cut rows [low, high)."""
        if not self.shape:
            return self
        low, high, _ = slice(low, high).indices(self.shape[0])
        return View(self.storage, self.offset + low * self.strides[0], (max(high - low, 0), *self.shape[1:]), self.strides)


@dataclass
class Window:
    """The next `left` bytes of a stream, as a stream."""

    stream: IO[bytes]
    left: int

    def read(self, count: int) -> bytes:
        count = min(count, self.left)
        self.left -= count
        return self.stream.read(count)

    def readline(self) -> bytes:
        line = self.stream.readline(self.left)
        self.left -= len(line)
        return line


def numbers(dtype: str) -> np.dtype:
    """Return numpy's type of what lies in the file."""
    return np.dtype("<u2" if dtype == "bfloat16" else dtype)


def as_float32(found: np.ndarray, dtype: str) -> np.ndarray:
    """Turn numbers as they lie in a file into float32; those of bfloat16 are the upper halves."""
    if dtype != "bfloat16":
        return found.astype(np.float32, copy=False)
    wide = np.zeros(found.size, "<f4")
    wide.view("<u2")[1::2] = found.ravel()
    return wide.reshape(found.shape)


def load(stream: Window, where: str) -> Any:
    """Run one pickle of a stream: numbers, texts, tuples, lists, dictionaries with texts as keys, `View` and `Stored`.

    Raises UserError for whatever else a pickle can say.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def popped() -> list[Any]:
        """Take what stands behind the last mark."""
        at = marks.pop()
        found = stack[at:]
        del stack[at:]
        return found

    for step, (code, value, _) in enumerate(pickletools.genops(stream)):
        name = code.name
        check(step < STEPS, f"{where}: more than {STEPS:,} instructions are no list of tensors")
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "MARK":
                check(len(marks) < MARKS, f"{where}: more than {MARKS} open brackets are no list of tensors")
                marks.append(len(stack))
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "TUPLE":
                stack.append(tuple(popped()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                check(len(stack) >= count, f"{where}: a broken pickle")
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(named(value.split(" ") if name == "GLOBAL" else [stack.pop(), stack.pop()][::-1], where))
            case "BINPERSID":
                stack.append(stored(stack.pop(), where))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(called_with(called, arguments, where))
            case "SETITEM" | "SETITEMS":
                pairs = popped() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
                put(stack[-1], pairs, where)
            case "APPEND" | "APPENDS":
                items = popped() if name == "APPENDS" else [stack.pop()]
                check(isinstance(stack[-1], list), f"{where}: a broken pickle")
                stack[-1].extend(items)
            case "BUILD":  # attributes of a dictionary: versions of modules, which no tensor needs
                stack.pop()
                check(isinstance(stack[-1], dict), f"{where} holds more than tensors; it is not read")
            case _:
                raise UserError(f"{where} holds more than tensors (instruction {name}); it is not read")
    check(len(stack) == 1, f"{where}: a broken pickle")
    return stack[0]


def named(parts: list[Any], where: str) -> Name:
    """Admit the name of a storage's class, or of one of CALLS."""
    check(all(isinstance(part, str) for part in parts), f"{where}: a broken pickle")
    name = ".".join(parts)
    known = name in CALLS or (parts[0] == "torch" and parts[-1] in STORAGES)
    check(known, f"{where} holds more than tensors ('{name[:80]}'); it is not read")
    return Name(name)


def stored(said: Any, where: str) -> Stored:
    """Make the storage of ("storage", class, key, device, numbers), with a None behind it in the old format."""
    fits = isinstance(said, tuple) and len(said) in (5, 6) and said[0] == "storage" and isinstance(said[1], Name)
    check(fits and isinstance(said[2], str) and whole(said[4]), f"{where}: a broken storage")
    check(len(said) == 5 or said[5] is None, f"{where}: a view of a storage as PyTorch had it before 0.4; {OLD}")
    kind = said[1].name.rpartition(".")[2]
    check(kind in STORAGES, f"{where}: a broken storage")
    return Stored(STORAGES[kind], said[2], said[4])


def called_with(called: Any, arguments: Any, where: str) -> Any:
    """Build what a call of CALLS stands for."""
    check(isinstance(called, Name) and isinstance(arguments, tuple), f"{where}: a broken pickle")
    if called.name == ORDERED:
        check(not arguments, f"{where} holds more than tensors; it is not read")
        return {}
    if called.name == PARAMETER:
        check(bool(arguments) and isinstance(arguments[0], View), f"{where}: a broken parameter")
        return arguments[0]
    check(called.name == TENSOR and len(arguments) >= 4, f"{where}: a broken tensor")
    storage, offset, shape, strides = arguments[:4]
    tuples = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 32
    check(isinstance(storage, Stored) and tuples and all(map(whole, (offset, *shape, *strides))), f"{where}: a broken tensor")
    view = View(storage, offset, shape, strides)
    size = math.prod(shape)
    check(not size or offset + view.span() <= storage.size, f"{where}: a tensor of {shape} ends behind its numbers")
    check(size <= max(storage.size, OVERLAP), f"{where}: a tensor of {shape} repeats {storage.size} numbers")
    return view


def whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def put(found: Any, pairs: list[Any], where: str) -> None:
    """Add names and values to a dictionary; a key that is no text might take any time to hash."""
    check(isinstance(found, dict) and len(pairs) % 2 == 0, f"{where}: a broken pickle")
    for key, value in zip(pairs[::2], pairs[1::2]):
        check(isinstance(key, str), f"{where} names a tensor by {type(key).__name__}, not by a text; it is not read")
        found[key] = value


class Pickled:
    """A PyTorch file: tensors by name, read a few rows at a time."""

    def __init__(self, file: Path):
        self.file = file
        with file.open("rb") as stream:
            first = stream.read(4)
        check(bool(first), f"{file} is empty")
        found, self.places = self._zipped() if first == b"PK\x03\x04" else self._old()
        found = found.get("state_dict", found) if isinstance(found, dict) else found
        right = isinstance(found, dict) and all(isinstance(x, View) for x in found.values())
        check(right, f"{file} holds more than tensors; it is not read")
        check(len(found) > 0, f"{file} holds no tensors")
        self.found: Mapping[str, View] = found
        for name, view in found.items():
            self._check(name, view.storage)

    def names(self) -> list[str]:
        return list(self.found)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.found[name].shape

    def dtype(self, name: str) -> str:
        return self.found[name].storage.dtype

    def raw(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        """Read rows [low, high) of a tensor as they lie there, bfloat16 as uint16."""
        view = self.found[name].rows(low, high)
        kind = numbers(view.storage.dtype)
        offset = self.places[view.storage.key][0] + view.offset * kind.itemsize
        found = np.fromfile(self.file, kind, view.span(), offset=offset)
        check(len(found) == view.span(), f"{self.file} was cut off while it was read")
        if not len(found):
            return np.zeros(view.shape, kind)
        strides = [step * kind.itemsize for step in view.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(found, view.shape, strides)).reshape(view.shape)

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        dtype = self.dtype(name)
        check(dtype in FLOATING, f"{self.file}: '{name}' is {dtype}, not floating point; read what it was made from")
        return as_float32(self.raw(name, low, high), dtype)

    def _check(self, name: str, storage: Stored) -> None:
        check(storage.key in self.places, f"{self.file} lacks the numbers of '{name}'")
        have, need = self.places[storage.key][1], storage.size * numbers(storage.dtype).itemsize
        check(have >= need, f"{self.file}: the numbers of '{name}' are {have:,} bytes, not {need:,}")

    def _zipped(self) -> tuple[Any, dict[str, tuple[int, int]]]:
        """Read the pickle of a zip, and find each storage's (first byte, bytes); compressed records are not PyTorch's."""
        with zipfile.ZipFile(self.file) as archive, self.file.open("rb") as stream:
            records = {info.filename: info for info in archive.infolist()}
            check(len(records) == len(archive.infolist()), f"{self.file} has records of the same name")
            roots = [name.removesuffix("data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
            check(len(roots) == 1, f"{self.file} is a zip without PyTorch's tensors")
            root, size = roots[0], self.file.stat().st_size

            def place(info: zipfile.ZipInfo) -> tuple[int, int]:
                plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
                check(plain and not info.flag_bits & 1, f"{self.file}: '{info.filename}' is compressed; {OLD}")
                stream.seek(info.header_offset)
                local = stream.read(30)
                check(local[:4] == b"PK\x03\x04" and len(local) == 30, f"{self.file} is damaged at '{info.filename}'")
                begin = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
                check(begin + info.file_size <= size, f"{self.file} is cut off: '{info.filename}' ends behind it")
                return begin, info.file_size

            def content(name: str, most: int) -> bytes:
                begin, length = place(records[name])
                stream.seek(begin)
                return stream.read(min(length, most))

            if f"{root}byteorder" in records:
                check(content(f"{root}byteorder", 16) == b"little", f"{self.file} was written on a big-endian machine; {OLD}")
            at, length = place(records[f"{root}data.pkl"])
            stream.seek(at)
            check(length <= BYTES, f"{self.file}: {length:,} bytes are no list of tensors")
            found = load(Window(stream, length), str(self.file))
            lead = f"{root}data/"
            return found, {name.removeprefix(lead): place(info) for name, info in records.items() if name.startswith(lead)}

    def _old(self) -> tuple[Any, dict[str, tuple[int, int]]]:
        """Read the pickles of the old format, and find the storages behind them: a count of numbers, then the numbers."""
        where = str(self.file)
        with self.file.open("rb") as stream:
            pickles = Window(stream, BYTES)
            head = load(pickles, where)
            check(type(head) is int and head == MAGIC, f"{where} is no file of tensors that PyTorch wrote; {OLD}")
            check(load(pickles, where) == VERSION, f"{where} is of an unknown version; {OLD}")
            system = load(pickles, where)
            check(isinstance(system, dict) and system.get("little_endian") is True, f"{where}: a big-endian machine's; {OLD}")
            kinds: dict[str, str] = {}
            found = load(pickles, where)
            inner = found.get("state_dict", found) if isinstance(found, dict) else {}
            for view in inner.values() if isinstance(inner, dict) else ():
                if isinstance(view, View):
                    kinds[view.storage.key] = view.storage.dtype
            keys, places = load(pickles, where), {}
            check(isinstance(keys, list) and all(isinstance(key, str) for key in keys), f"{where}: a broken list of storages")
            size = self.file.stat().st_size
            for key in keys:
                check(key in kinds, f"{where} holds more than tensors; it is not read")
                count = int.from_bytes(stream.read(8), "little")
                length = count * numbers(kinds[key]).itemsize
                check(stream.tell() + length <= size, f"{where} is cut off: {length:,} bytes of numbers end behind it")
                places[key] = stream.tell(), length
                stream.seek(length, 1)
            return found, places
