"""Text files and JSON lines as corpora, read by index from memory maps."""

from __future__ import annotations

import functools
import itertools
import mmap
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lm.data.files import Files, Group, check_text, json_record, line_ends, signature
from lm.data.packed import Unpacked
from lm.data.types import Piece, Reader, TextSource, joined
from lm.errors import UserError, check_choices

PIECE = 1 << 20  # bytes of a long document read at once


@dataclass(frozen=True, kw_only=True)
class Text(TextSource):
    """UTF-8 text: a file, plain, .gz or .zst, a glob, or several of either joined by commas.

    `documents`: one document per file, per line, or per block between blank lines.
    """

    path: str
    documents: Literal["file", "line", "blank"] = "file"

    def __post_init__(self):
        check_choices(self)

    def open(self) -> Reader:
        return TextReader(self.path, self.documents)


class TextReader(Files):
    """Documents as byte ranges, found once; long ones are cut into pieces of about PIECE bytes."""

    def __init__(self, path: str, documents: str, group: Group | None = None):
        super().__init__(path, group)
        self.documents = documents

    def cut(self, size: int) -> list[tuple[int, Reader]]:
        groups = self.groups(size, lines=self.documents == "line")
        return [(group.size, TextReader("", self.documents, group)) for group in groups]

    @functools.cached_property
    def index(self) -> np.ndarray:
        """Rows of (file, first byte, byte after the last, whether the document ends), int64 [pieces, 4]."""
        rows = [self._index(i) for i in range(len(self.paths)) if not self.empty(i)]
        return np.concatenate([np.zeros((0, 4), np.int64), *rows])

    def _index(self, file: int) -> np.ndarray:
        data = self.map(file)
        if self.documents == "file":
            starts, stops = np.array([self.first(file)]), np.array([len(data)])
        elif self.documents == "line":
            starts = self.line_starts(file)
            stops = np.append(starts[1:], self.end(file))
        else:
            starts, stops = _blocks(data, self.line_starts(file))
        if len(starts) and (stops - starts).max() > PIECE:
            cuts = (itertools.pairwise([*_cuts(data, a, b), b]) for a, b in zip(starts.tolist(), stops.tolist()))
            rows = [(file, a, b, b == stop) for pairs, stop in zip(cuts, stops.tolist()) for a, b in pairs]
            return np.array(rows, np.int64)
        return np.stack([np.full_like(starts, file), starts, stops, np.ones_like(starts)], axis=1)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Piece:
        file, start, stop, end = self.index[i].tolist()
        text = self.text(file, start, stop)
        if self.documents != "file" and end:
            text = text.rstrip("\r\n")
        return Piece(text, bool(end))

    def signature(self) -> str:
        return signature(self.paths, "text", self.documents)


def _blocks(data: mmap.mmap | Unpacked, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the byte ranges between blank lines, from the offsets of all lines."""
    sizes = np.diff(np.append(starts, len(data)))
    # A blank line has at most two bytes, so no other line is looked at.
    first = np.array([data[s] for s in starts[sizes <= 2]], np.uint8)
    blank = np.zeros(len(starts), bool)
    blank[sizes <= 2] = (first == ord("\n")) | (first == ord("\r"))
    begins = ~blank & np.concatenate([[True], blank[:-1]])
    ends = ~blank & np.concatenate([blank[1:], [True]])
    return starts[begins], (starts + sizes)[ends]


def _cuts(data: mmap.mmap | Unpacked, start: int, stop: int) -> list[int]:
    """Return the offsets where the pieces of bytes [start, stop) begin: after the first line end past each PIECE bytes.

    A line longer than another PIECE is cut between two characters instead.
    """
    cuts = [start]
    while (at := cuts[-1] + PIECE) < stop:
        line = data.find(b"\n", at, min(at + PIECE, stop))
        if line >= 0:
            at = line + 1
        else:
            at = min(at + PIECE, stop)
            # The last condition is for bytes that are no UTF-8: a cut always moves on, and decoding reports them later.
            while at < stop and data[at] & 0xC0 == 0x80 and at > cuts[-1] + 1:  # a continuation byte of UTF-8
                at -= 1
        if at >= stop:
            break
        cuts.append(at)
    return cuts


@dataclass(frozen=True, kw_only=True)
class JsonLines(TextSource):
    """One JSON object a line, one document each: the string in `field`.

    With `fields` a document has several fields, in this order, for objectives that need them apart (source and target). A
    value that is a list of strings (the turns of a dialogue) is as many fields.
    """

    path: str
    field: str = "text"
    fields: tuple[str, ...] = ()

    def open(self) -> Reader:
        return JsonLinesReader(self.path, self.field, tuple(self.fields))


class JsonLinesReader(Files):
    """One object a line; a blank line is an empty document."""

    def __init__(self, path: str, field: str, fields: tuple[str, ...] = (), group: Group | None = None):
        super().__init__(path, group)
        self.fields, self.lists = fields or (field,), bool(fields)

    def cut(self, size: int) -> list[tuple[int, Reader]]:
        field, fields = self.fields[0], self.fields if self.lists else ()
        return [(group.size, JsonLinesReader("", field, fields, group)) for group in self.groups(size, lines=True)]

    @functools.cached_property
    def starts(self) -> list[np.ndarray]:
        return [self.line_starts(i) for i in range(len(self.paths))]

    @functools.cached_property
    def ends(self) -> np.ndarray:
        return np.cumsum([len(starts) for starts in self.starts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> Piece:
        file = int(np.searchsorted(self.ends, i, "right"))
        starts = self.starts[file]
        line = i - int(self.ends[file]) + len(starts)
        start = int(starts[line])
        stop = int(starts[line + 1]) if line + 1 < len(starts) else self.end(file)
        text, path = self.text(file, start, stop), self.paths[file]
        try:
            return self._piece(text, f"{path}:{line + 1}")
        except UserError:  # only now are the lines before a range counted
            return self._piece(text, f"{path}:{line_ends(path, start) + 1}")

    def _piece(self, text: str, where: str) -> Piece:
        if not text.strip():
            return Piece("")
        values, where = json_record(text, where)
        return joined([part for field in self.fields for part in self._texts(values, field, where)])

    def _texts(self, values: dict[str, Any], field: str, where: str) -> list[str]:
        if field not in values:
            raise UserError(f"{where}: no field {field!r}; it has {', '.join(values) or 'none'}")
        value = values[field]
        texts = value if self.lists and isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{where}: field {field!r} is {type(value).__name__}, not a string")
            check_text(text, where, field)
        return texts

    def signature(self) -> str:
        return signature(self.paths, "jsonlines", *(["fields"] if self.lists else []), *self.fields)
