"""PyTorch's files of tensors, without PyTorch: a zip of a pickle and one record a storage (`torch.save` since 1.6), or
(older) five pickles and the storages behind them.

Claimed sizes are compared with those of the file before any number is read, so that no claim costs memory.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.convert.unpickle import BYTES, OLD, Stored, View, Window, load
from lm.errors import check

FLOATING = {"<f8", "<f4", "<f2", "bfloat16"}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the old format


def numbers(dtype: str) -> np.dtype:
    """Return numpy's dtype of the stored numbers."""
    return np.dtype("<u2" if dtype == "bfloat16" else dtype)


def as_float32(found: np.ndarray, dtype: str) -> np.ndarray:
    """Convert stored numbers to float32; bfloat16 is the upper half of a float32."""
    if dtype != "bfloat16":
        return found.astype(np.float32, copy=False)
    wide = np.zeros(found.size, "<f4")
    wide.view("<u2")[1::2] = found.ravel()
    return wide.reshape(found.shape)


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
        """Read rows [low, high) of a tensor in the stored dtype, bfloat16 as uint16."""
        view = self.found[name].rows(low, high)
        kind = numbers(view.storage.dtype)
        offset = self.places[view.storage.key][0] + view.offset * kind.itemsize
        # Only the numbers from the view's first to its last: many tensors may share one large storage.
        found = np.fromfile(self.file, kind, view.span(), offset=offset)
        check(len(found) == view.span(), f"{self.file} was cut off while it was read")
        if not len(found):
            return np.zeros(view.shape, kind)
        # `as_strided` checks nothing. It stays within `found`: strides are not negative, and `span` reaches to the last
        # number.
        strides = [step * kind.itemsize for step in view.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(found, view.shape, strides)).reshape(view.shape)

    def read(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        dtype = self.dtype(name)
        check(dtype in FLOATING, f"{self.file}: '{name}' is {dtype}, not floating point; read its original")
        return as_float32(self.raw(name, low, high), dtype)

    def _check(self, name: str, storage: Stored) -> None:
        check(storage.key in self.places, f"{self.file} lacks the numbers of '{name}'")
        have, need = self.places[storage.key][1], storage.size * numbers(storage.dtype).itemsize
        check(have >= need, f"{self.file}: the numbers of '{name}' are {have:,} bytes, not {need:,}")

    def _zipped(self) -> tuple[Any, dict[str, tuple[int, int]]]:
        """Read the pickle of a zip, and locate each storage: (first byte, bytes). PyTorch compresses no record."""
        with zipfile.ZipFile(self.file) as archive, self.file.open("rb") as stream:
            # Two records of one name may be two different files to two readers.
            records = {info.filename: info for info in archive.infolist()}
            check(len(records) == len(archive.infolist()), f"{self.file} has records of the same name")
            roots = [name.removesuffix("data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
            check(len(roots) == 1, f"{self.file} is a zip without PyTorch's tensors")
            root, size = roots[0], self.file.stat().st_size

            # The local header, not the directory, holds the offset of the numbers, aligned by an extra field.
            def place(info: zipfile.ZipInfo) -> tuple[int, int]:
                plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
                check(plain and not info.flag_bits & 1, f"{self.file}: {info.filename!r:.80} is compressed; {OLD}")
                stream.seek(info.header_offset)
                local = stream.read(30)
                check(local[:4] == b"PK\x03\x04" and len(local) == 30, f"{self.file} is damaged at {info.filename!r:.80}")
                begin = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
                check(begin + info.file_size <= size, f"{self.file} is cut off: {info.filename!r:.80} ends behind it")
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
        """Read the pickles of the old format, and locate the storages after them: a count of numbers, then the numbers."""
        where = str(self.file)
        with self.file.open("rb") as stream:
            # One bound for all five pickles.
            pickles = Window(stream, BYTES)
            head = load(pickles, where)
            check(type(head) is int and head == MAGIC, f"{where} is no file of tensors that PyTorch wrote; {OLD}")
            check(load(pickles, where) == VERSION, f"{where} is of an unknown version; {OLD}")
            system = load(pickles, where)
            check(isinstance(system, dict) and system.get("little_endian") is True, f"{where}: a big-endian machine's; {OLD}")
            # The storages themselves are preceded by a count only; what a number is, the tensors that view it say.
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
                # Without a sign: no count leads backwards in the file.
                count = int.from_bytes(stream.read(8), "little")
                length = count * numbers(kinds[key]).itemsize
                check(stream.tell() + length <= size, f"{where} is cut off: {length:,} bytes of numbers end behind it")
                places[key] = stream.tell(), length
                stream.seek(length, 1)
            return found, places
