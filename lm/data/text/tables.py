"""Comma- and tab-separated files as corpora, read by index: one row, one document of several fields."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lm.data.files import Files, Group, csv_reader, decode, signature, table_rows
from lm.data.packed import byte_lines
from lm.data.types import Piece, Reader, TextSource, joined
from lm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Table(TextSource):
    """Rows of comma- or (.tsv, .tab) tab-separated files with a first row of column names; one document each.

    `fields` are the columns of a document, in this order. With `quoted=False` quotes are ordinary characters.
    """

    path: str
    fields: tuple[str, ...]
    quoted: bool = True

    def __post_init__(self):
        if isinstance(self.fields, str) or not self.fields:
            raise UserError(f"Table(fields={self.fields!r}): name columns, as in fields=('source', 'target')")

    def open(self) -> Reader:
        return TableReader(self.path, tuple(self.fields), self.quoted)


class TableReader(Files):
    """Rows as byte ranges, found once by the csv module: a quoted field may hold line ends."""

    def __init__(self, path: str, fields: tuple[str, ...], quoted: bool, group: Group | None = None):
        super().__init__(path, group)
        self.fields, self.quoted = fields, quoted
        self.columns: dict[int, list[int]] = {}  # by file, of the fields; filled by `index`

    def cut(self, size: int) -> list[tuple[int, Reader]]:
        return [(group.size, TableReader("", self.fields, self.quoted, group)) for group in self.groups(size)]

    @functools.cached_property
    def index(self) -> np.ndarray:
        """Rows of (file, first byte, byte after the last), int64 [rows, 3]."""
        ranges = [row for file in range(len(self.paths)) if not self.empty(file) for row in self._ranges(file)]
        return np.array(ranges, np.int64).reshape(-1, 3)

    def _ranges(self, file: int) -> Iterator[tuple[int, int, int]]:
        path, at = self.paths[file], self.first(file)

        # Only the csv module knows where rows end; bytes are counted as it asks for lines.
        def lines() -> Iterator[str]:
            nonlocal at
            for raw in byte_lines(path, at):
                text = decode(raw, path, at)
                at += len(raw)
                yield text

        start = at
        for line, row in table_rows(lines(), path, self.quoted):
            if row and file not in self.columns:
                for field in self.fields:
                    if row.count(field) != 1:
                        raise UserError(f"{path}:{line}: no column {field!r}, or two; it has {', '.join(row)}")
                self.columns[file] = [row.index(field) for field in self.fields]
            elif row:
                yield file, start, at
            start = at

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Piece:
        file, start, stop = self.index[i].tolist()
        text = io.StringIO(self.text(file, start, stop), newline="")
        row = next(csv_reader(text, self.paths[file], self.quoted))
        return joined([row[k] for k in self.columns[file]])

    def signature(self) -> str:
        return signature(self.paths, "table", str(self.quoted), *self.fields)
