"""The token files of shards as one stream: the index that joins them, and an array that maps a file when it is first read."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from lm.data.corpus.digests import DamagedCorpus, checksum
from lm.outputs import replace_file
from lm.strict_json import dump_json, load_json


def joined_digest(parts: Sequence[str]) -> str:
    """Return the SHA-256 of the digests of shards; of a single one its own, that of the plain text."""
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


class Extent(NamedTuple):
    """Elements [low, high) of a file."""

    path: Path
    low: int
    high: int


class Joined:
    """Extents of files as one array, of which slices and arrays of indices are read; the rest of the files stays closed."""

    def __init__(self, extents: Sequence[Extent], dtype: np.dtype):
        self.extents, self.dtype = [extent for extent in extents if extent.high > extent.low], dtype
        self.ends = np.cumsum([extent.high - extent.low for extent in self.extents], dtype=np.int64)
        self.maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def nbytes(self) -> int:
        return len(self) * self.dtype.itemsize

    def view(self, kind: type) -> Joined:
        """Return itself: its maps are plain arrays."""
        return self

    def astype(self, dtype: npt.DTypeLike) -> np.ndarray:
        """Read everything."""
        return self[:].astype(dtype)

    def stretch(self, low: int, high: int) -> Joined:
        """Return elements [low, high) without reading them."""
        starts = self.ends - [extent.high - extent.low for extent in self.extents]
        cut = [
            Extent(path, max(a, a + low - start), min(b, a + high - start))
            for (path, a, b), start in zip(self.extents, starts.tolist())
        ]
        return Joined(cut, self.dtype)

    @overload
    def __getitem__(self, key: int) -> np.generic: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray: ...
    def __getitem__(self, key: int | slice | np.ndarray) -> np.generic | np.ndarray:
        if isinstance(key, slice):
            low, high, step = key.indices(len(self))
            first, last = self.ends.searchsorted((low, max(low, high - 1)), "right").tolist()
            if step == 1 and first == last and first < len(self.ends):
                base = int(self.ends[first]) - len(self._map(first))
                return self._map(first)[low - base : max(low, high) - base]
            key = np.arange(low, high, step)
        at = np.asarray(key)
        at = np.where(at < 0, at + len(self), at)
        number = self.ends.searchsorted(at, "right")
        values = np.empty(at.shape, self.dtype)
        for k in np.unique(number).tolist():
            inside = number == k
            values[inside] = self._map(k)[at[inside] - (int(self.ends[k]) - len(self._map(k)))]
        return values[()] if values.ndim == 0 else values

    def _map(self, k: int) -> np.ndarray:
        if k not in self.maps:
            path, low, high = self.extents[k]
            self.maps[k] = np.memmap(path, self.dtype, "r").view(np.ndarray)[low:high]
        return self.maps[k]


def join_streams(folder: Path, name: str, homes: Sequence[Path], source: str) -> None:
    """Write the index of a stream whose parts are in the folders of shards: NAME.starts, of all documents, and NAME.json.

    A shard begins with the separator that the shard before it ends with: of the two only the first is kept.
    """
    headers = [load_json(home / f"{name}.json", dict) for home in homes]
    total, crc, documents = 0, 0, 0
    with open(folder / f"{name}.starts", "wb") as file:
        for home, header in zip(homes, headers):
            edge = min(total, header["separator"] is not None)
            raw = (np.fromfile(home / f"{name}.starts", "<i8") + total - edge).astype("<i8").tobytes()
            file.write(raw)
            crc, documents = zlib.crc32(raw, crc), documents + header["documents"]
            total += header["tokens"] - edge
        file.flush()
        os.fsync(file.fileno())
    first = headers[0]
    joined = {key: first[key] for key in ("format", "vocab", "dtype", "separator", "tokenizer")} | {"source": source}
    joined |= {"marks": True} if first.get("marks") else {}
    joined |= {"raw_bytes": sum(header["raw_bytes"] for header in headers), "tokens": total, "documents": documents}
    joined |= {"sha256": joined_digest([header["sha256"] for header in headers]), "crc32": crc}
    joined["shards"] = [[home.name, header["tokens"], header["crc32"]] for home, header in zip(homes, headers)]
    replace_file(folder / f"{name}.json", dump_json(joined))


def open_arrays(base: Path, header: dict, verified: float) -> tuple[Joined, np.ndarray, Joined | None]:
    """Open the tokens, starts and marks of a stream of shards; raises DamagedCorpus.

    Streams of up to `verified` bytes are compared with their checksums.
    """
    dtype, shards = np.dtype(header["dtype"]), header["shards"]
    edge = int(header["separator"] is not None)

    def joined(suffix: str, kind: np.dtype, number: int) -> Joined:
        extents = []
        for k, (home, count, sums) in enumerate(shards):
            path = (base.parent / home / base.name).with_suffix(suffix)
            _check_file(path, count * kind.itemsize, sums[number], header["tokens"] * kind.itemsize <= verified)
            extents.append(Extent(path, edge if k else 0, count))
        return Joined(extents, kind)

    starts = base.with_suffix(".starts")
    _check_file(starts, 8 * header["documents"], header["crc32"], 8 * header["documents"] <= verified)
    mapped = np.memmap(starts, "<i8", "r") if header["documents"] else np.zeros(0, "<i8")
    marks = joined(".marks", np.dtype("u1"), 2) if header.get("marks") else None
    return joined(".bin", dtype, 0), mapped, marks


def _check_file(path: Path, size: int, crc: int, verified: bool) -> None:
    if not path.is_file() or path.stat().st_size != size:
        raise DamagedCorpus(f"{path} is damaged (it is cut short, or gone)")
    if verified and checksum(path) != crc:
        raise DamagedCorpus(f"{path} is damaged (its checksum does not fit)")
