"""Read comma- and tab-separated files by index: one row, one document of several fields."""

from __future__ import annotations

import csv
import functools
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lm.data.text.files import Files, decode, signature
from lm.data.types import Piece, Reader, joined
from lm.errors import UserError


class TableReader:
    """Rows are found once, by the csv module (a quoted field may hold line ends), and read when asked for."""

    def __init__(self, path: str, fields: tuple[str, ...], quoted: bool):
        self.files, self.fields, self.quoted = Files(path), fields, quoted
        self.name = self.files.name
        csv.field_size_limit(sys.maxsize)

    def _read(self, lines: Iterator[str], file: int):
        tabs = self.files.paths[file].lower().endswith((".tsv", ".tab"))
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(lines, delimiter="\t" if tabs else ",", quoting=quoting, strict=True)

    @functools.cached_property
    def index(self) -> np.ndarray:
        """Rows of (file, first byte, byte after the last), int64 [n, 3]."""
        found = [row for file, path in enumerate(self.files.paths) if os.path.getsize(path) for row in self._rows(file)]
        return np.array(found, np.int64).reshape(-1, 3)

    @functools.cached_property
    def columns(self) -> dict[int, list[int]]:
        """The numbers of the wanted columns in each file, as `index` found them."""
        return {}

    def _rows(self, file: int) -> Iterator[tuple[int, int, int]]:
        path, at, count = self.files.paths[file], self.files.begin(file), 0

        def lines() -> Iterator[str]:
            nonlocal at, count
            with open(path, "rb") as handle:
                handle.seek(at)
                for raw in handle:
                    text = decode(raw, path, at)
                    at, count = at + len(raw), count + 1
                    yield text

        rows, start, line, width = self._read(lines(), file), at, 1, 0
        try:
            for row in rows:
                if not width:
                    width = self._header(row, file)
                elif row and len(row) != width:
                    raise UserError(f"{path}:{line}: {len(row)} fields where the first row has {width}; mend the line")
                elif row:
                    yield file, start, at
                start, line = at, count + 1
        except csv.Error as error:
            raise UserError(f"{path}:{line}: {error}; mend the quotes, or give quoted=False") from None

    def _header(self, names: list[str], file: int) -> int:
        for field in self.fields:
            if names.count(field) != 1:
                raise UserError(f"{self.files.paths[file]}:1: no column {field!r}, or two; it has {', '.join(names)}")
        self.columns[file] = [names.index(field) for field in self.fields]
        return len(names)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Piece:
        file, start, stop = self.index[i].tolist()
        text = decode(self.files.map(file)[start:stop], self.files.paths[file], start)
        row = next(self._read(io.StringIO(text, newline=""), file))
        return joined([row[k] for k in self.columns[file]])

    def signature(self) -> str:
        return signature(self.files.paths, "table", str(self.quoted), *self.fields)

    def inputs(self) -> list[str]:
        return self.files.paths


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of comma- or (.tsv, .tab) tab-separated files with the columns' names in the first row; one document each.

    `fields` are the columns that a document has, in this order. `quoted=False` takes quotes as ordinary characters.
    """

    path: str
    fields: tuple[str, ...]
    quoted: bool = True

    def __post_init__(self):
        if isinstance(self.fields, str) or not self.fields:
            raise UserError(f"Table(fields={self.fields!r}): name columns, as in fields=('source', 'target')")

    def open(self) -> Reader:
        return TableReader(self.path, tuple(self.fields), self.quoted)
