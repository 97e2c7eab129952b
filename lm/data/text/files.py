"""Read text, JSON Lines and Parquet files by index, so that a corpus larger than memory streams."""

from __future__ import annotations

import functools
import glob
import itertools
import mmap
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lm.data.types import Piece, Reader, joined
from lm.errors import UserError
from lm.strict_json import parse_json

PIECE = 1 << 20  # bytes of a long document read at once


def expand(path: str) -> list[str]:
    """List the files that a path, a glob or a comma list of them names, sorted within each glob."""
    found: list[str] = []
    for part in filter(None, (p.strip() for p in path.split(","))):
        part = os.path.expanduser(part)
        if os.path.isdir(part):
            raise UserError(f"{part} is a folder: name its files, for example '{os.path.join(part, '*.txt')}'")
        if os.path.exists(part):
            found.append(part)
        elif glob.has_magic(part):
            matches = sorted(p for p in glob.glob(part, recursive=True) if os.path.isfile(p))
            if not matches:
                raise UserError(f"{part} matches no file: quote the pattern and check it with ls")
            found += matches
        else:
            raise UserError(f"{part} does not exist: check the path (relative paths start at {os.getcwd()})")
    if not found:
        raise UserError(f"no file in {path!r}: give a path, a glob, or several joined by commas")
    return list(dict.fromkeys(found))


def signature(paths: list[str], *choices: str) -> str:
    stats = [(os.path.abspath(p), os.stat(p)) for p in paths]
    return "\n".join([*choices, *(f"{p} {s.st_size} {s.st_mtime_ns}" for p, s in stats)])


def decode(raw: bytes, path: str, start: int) -> str:
    """Decode UTF-8 that begins at byte `start` of `path`; an undecodable byte is a UserError with its offset."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {start + error.start} (0x{raw[error.start]:02x}) is not UTF-8; "
            f"convert the file first: iconv -f ENCODING -t UTF-8 (or -c to drop such bytes)"
        ) from None


def _cuts(data: mmap.mmap, start: int, stop: int) -> list[int]:
    """Return where the pieces of bytes [start, stop) begin: after the first line end past each PIECE bytes.

    A line longer than another PIECE is cut between two characters instead.
    """
    cuts = [start]
    while (at := cuts[-1] + PIECE) < stop:
        line = data.find(b"\n", at, min(at + PIECE, stop))
        if line >= 0:
            at = line + 1
        else:
            at = min(at + PIECE, stop)
            while at < stop and data[at] & 0xC0 == 0x80 and at > cuts[-1] + 1:  # inside a character
                at -= 1
        if at >= stop:
            break
        cuts.append(at)
    return cuts


def _line_starts(data: mmap.mmap, start: int) -> np.ndarray:
    """Return the byte offset of each line, int64, reading the file once in blocks."""
    found = [np.array([start])]
    for at in range(start, len(data), 64 * PIECE):
        block = np.frombuffer(data[at : at + 64 * PIECE], np.uint8)
        found.append(np.flatnonzero(block == 10) + at + 1)
    starts = np.concatenate(found)
    return starts[starts < len(data)]


def _blocks(data: mmap.mmap, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the byte ranges between blank lines."""
    starts = _line_starts(data, start)
    sizes = np.diff(np.append(starts, len(data)))
    first = np.array([data[s] for s in starts[sizes <= 2]], np.uint8)
    blank = np.zeros(len(starts), bool)
    blank[sizes <= 2] = (first == 10) | (first == 13)
    begins = ~blank & np.concatenate([[True], blank[:-1]])
    after = ~blank & np.concatenate([blank[1:], [True]])
    return starts[begins], (starts + sizes)[after]


class Files:
    """Memory-mapped files behind one index; keeps the last file open."""

    def __init__(self, path: str):
        self.paths = expand(path)
        self.name = ",".join(dict.fromkeys(os.path.basename(p) for p in self.paths[:3]))
        if len(self.paths) > 3:
            self.name += f",+{len(self.paths) - 3}"
        self._last: tuple[int, mmap.mmap] | None = None

    def map(self, file: int) -> mmap.mmap:
        last = self._last
        if last is None or last[0] != file:
            with open(self.paths[file], "rb") as handle:
                last = self._last = (file, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        return last[1]

    def begin(self, file: int) -> int:
        """Return the first byte after a byte-order mark."""
        return 3 if self.map(file)[:3] == b"\xef\xbb\xbf" else 0


class TextReader:
    """Pieces of UTF-8 files: byte ranges, read when asked for."""

    def __init__(self, path: str, documents: str):
        self.files = Files(path)
        self.name, self.documents = self.files.name, documents

    @functools.cached_property
    def index(self) -> np.ndarray:
        """Rows of (file, first byte, byte after the last, whether the document ends)."""
        rows = [self._index(i) for i, p in enumerate(self.files.paths) if os.path.getsize(p)]
        return np.concatenate([np.zeros((0, 4), np.int64), *rows])

    def _index(self, file: int) -> np.ndarray:
        data, begin = self.files.map(file), self.files.begin(file)
        if self.documents == "file":
            starts, stops = np.array([begin]), np.array([len(data)])
        elif self.documents == "line":
            starts = _line_starts(data, begin)
            stops = np.append(starts[1:], len(data))
        else:
            starts, stops = _blocks(data, begin)
        if len(starts) and (stops - starts).max() > PIECE:
            return _split(data, file, starts, stops)
        return np.stack([np.full_like(starts, file), starts, stops, np.ones_like(starts)], axis=1)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Piece:
        file, start, stop, end = self.index[i].tolist()
        text = decode(self.files.map(file)[start:stop], self.files.paths[file], start)
        if self.documents != "file" and end:
            text = text.rstrip("\r\n")
        return Piece(text, bool(end))

    def signature(self) -> str:
        return signature(self.files.paths, "text", self.documents)

    def inputs(self) -> list[str]:
        return self.files.paths


def _split(data: mmap.mmap, file: int, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    rows = []
    for start, stop in zip(starts.tolist(), stops.tolist()):
        cuts = [*_cuts(data, start, stop), stop]
        rows += [(file, a, b, b == stop) for a, b in itertools.pairwise(cuts)]
    return np.array(rows, np.int64)


class JsonLinesReader:
    """One object a line; an error names the file and the line."""

    def __init__(self, path: str, field: str, fields: tuple[str, ...] = ()):
        self.files = Files(path)
        self.name, self.fields, self.lists = self.files.name, fields or (field,), bool(fields)

    @functools.cached_property
    def starts(self) -> list[np.ndarray]:
        return [
            _line_starts(self.files.map(i), self.files.begin(i)) if os.path.getsize(p) else np.zeros(0, np.int64)
            for i, p in enumerate(self.files.paths)
        ]

    @functools.cached_property
    def ends(self) -> np.ndarray:
        return np.cumsum([len(starts) for starts in self.starts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> Piece:
        file = int(np.searchsorted(self.ends, i, "right"))
        starts, data, path = self.starts[file], self.files.map(file), self.files.paths[file]
        line = i - int(self.ends[file]) + len(starts)
        start = int(starts[line])
        stop = int(starts[line + 1]) if line + 1 < len(starts) else len(data)
        return self._piece(decode(data[start:stop], path, start), f"{path}:{line + 1}")

    def _piece(self, line: str, where: str) -> Piece:
        if not line.strip():
            return Piece("")
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise UserError(f'{where}: a {type(record).__name__}, not an object; write {{"{self.fields[0]}": ...}}')
        return joined([text for field in self.fields for text in self._texts(record, field, where)])

    def _texts(self, record: dict, field: str, where: str) -> list[str]:
        if field not in record:
            raise UserError(f"{where}: no field {field!r}; it has {', '.join(record) or 'none'}")
        value = record[field]
        texts = value if self.lists and isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{where}: field {field!r} is {type(value).__name__}, not a string")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{where}: field {field!r} has half a surrogate pair at character {error.start}; mend the escape"
                ) from None
        return texts

    def signature(self) -> str:
        return signature(self.files.paths, "jsonlines", *(["fields"] if self.lists else []), *self.fields)

    def inputs(self) -> list[str]:
        return self.files.paths


@dataclass(frozen=True, kw_only=True)
class Text:
    """UTF-8 text: a file, a glob, or several of either joined by commas.

    `documents`: each file is one document, or each line, or each block between blank lines.
    """

    path: str
    documents: Literal["file", "line", "blank"] = "file"

    def __post_init__(self):
        if self.documents not in ("file", "line", "blank"):
            raise UserError(f"Text(documents={self.documents!r}): use 'file', 'line' or 'blank'")

    def open(self) -> Reader:
        return TextReader(self.path, self.documents)


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """One JSON object a line, one document each: the string in `field`.

    With `fields` a document has several, in this order, for objectives that read them apart (source and target); one
    whose value is a list of strings (the turns of a dialogue) gives as many.
    """

    path: str
    field: str = "text"
    fields: tuple[str, ...] = ()

    def open(self) -> Reader:
        return JsonLinesReader(self.path, self.field, tuple(self.fields))
