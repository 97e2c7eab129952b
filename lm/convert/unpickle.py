"""Read a pickle of tensors without executing it.

A pickle is a program for a stack machine; this one has the instructions that build dictionaries of tensors, and calls
nothing: a class or function outside CALLS is an error.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import IO, Any

from lm.errors import UserError, check

# Storage classes of torch -> numpy's dtype; numpy has no bfloat16.
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
}  # fmt: skip
ORDERED, TENSOR, PARAMETER = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
CALLS = {ORDERED, TENSOR, PARAMETER}
STEPS, BYTES = 4_000_000, 1 << 28  # instructions and bytes of a pickle; a tensor takes about fifty and two hundred
MARKS = 1000  # open brackets at a time; tensors in a dictionary need about ten
OVERLAP = 1 << 24  # most numbers of a view that repeats its storage
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
        """Return the count of stored numbers from the view's first to its last."""
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides)) if math.prod(self.shape) else 0

    def rows(self, low: int | None, high: int | None) -> View:
        """Return the view of rows [low, high)."""
        if not self.shape:
            return self
        low, high, _ = slice(low, high).indices(self.shape[0])
        return View(self.storage, self.offset + low * self.strides[0], (max(high - low, 0), *self.shape[1:]), self.strides)


@dataclass
class Window:
    """The next `remaining` bytes of a stream, as a stream."""

    stream: IO[bytes]
    remaining: int

    def read(self, count: int) -> bytes:
        count = min(count, self.remaining)
        self.remaining -= count
        return self.stream.read(count)

    def readline(self) -> bytes:
        line = self.stream.readline(self.remaining)
        self.remaining -= len(line)
        return line


def load(stream: Window, where: str) -> Any:
    """Run one pickle of a stream: numbers, texts, tuples, lists, dictionaries with texts as keys, `View` and `Stored`.

    Raises UserError for any other instruction or type.
    """
    # The state of the pickle machine: `marks` are positions in the stack, `memo` holds values by number.
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def popped() -> list[Any]:
        """Pop the stack down to the last mark."""
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for step, (code, value, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]  # only reads
        name = code.name
        check(step < STEPS, f"{where}: more than {STEPS:,} instructions are no list of tensors")
        # Only the instructions that torch.save emits for a dictionary of tensors; INST, OBJ, NEWOBJ and the like call code.
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
                # Pops from a stack that is too short raise by themselves, a slice of it does not.
                check(len(stack) >= count, f"{where}: a broken pickle")
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            # Names are compared, never imported, and calls are replaced by values of our own.
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
    """Return the name of a storage class or of one of CALLS; UserError for any other."""
    check(all(isinstance(part, str) for part in parts), f"{where}: a broken pickle")
    name = ".".join(parts)
    known = name in CALLS or (parts[0] == "torch" and parts[-1] in STORAGES)
    check(known, f"{where} holds more than tensors ({name[:80]!r}); it is not read")
    return Name(name)


def stored(entry: Any, where: str) -> Stored:
    """Return the storage of ("storage", class, key, device, numbers), in the old format with a further None."""
    fits = isinstance(entry, tuple) and len(entry) in (5, 6) and entry[0] == "storage" and isinstance(entry[1], Name)
    check(fits and isinstance(entry[2], str) and whole(entry[4]), f"{where}: a broken storage")
    check(len(entry) == 5 or entry[5] is None, f"{where}: a view of a storage as PyTorch had it before 0.4; {OLD}")
    kind = entry[1].name.rpartition(".")[2]
    # `named` lets the functions of CALLS through, too.
    check(kind in STORAGES, f"{where}: a broken storage")
    return Stored(STORAGES[kind], entry[2], entry[4])


def called_with(called: Any, arguments: Any, where: str) -> Any:
    """Return the value of a call of CALLS."""
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
    # Strides of 0 are valid (expanded tensors), and could claim any size from one number.
    check(size <= max(storage.size, OVERLAP), f"{where}: a tensor of {shape} repeats {storage.size} numbers")
    return view


def whole(value: Any) -> bool:
    # By type, as True is an int to isinstance; without a sign, so that no view leads backwards.
    return type(value) is int and 0 <= value < 1 << 62


def put(tensors: Any, pairs: list[Any], where: str) -> None:
    """Add names and values to a dictionary; keys must be texts, as hashing other keys might take any time."""
    check(isinstance(tensors, dict) and len(pairs) % 2 == 0, f"{where}: a broken pickle")
    for key, value in zip(pairs[::2], pairs[1::2]):
        check(isinstance(key, str), f"{where} names a tensor by {type(key).__name__}, not by a text; it is not read")
        tensors[key] = value
