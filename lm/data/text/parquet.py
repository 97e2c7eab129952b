"""Parquet files by index: one row, one document; a row group at a time is held in memory."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lm.data.files import expand, signature
from lm.data.types import Piece, Reader, TextSource
from lm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Parquet(TextSource):
    """One row, one document: the string in `column`."""

    path: str
    column: str = "text"

    def open(self) -> Reader:
        return ParquetReader(self.path, self.column)


class Group(NamedTuple):
    """A row group: its file and number there, its rows, and their bytes before compression."""

    file: int
    number: int
    rows: int
    size: int


class ParquetReader:
    """Rows of Parquet files; keeps the last row group's column in memory."""

    def __init__(self, path: str, column: str):
        import pyarrow.parquet

        self.paths, self.column = expand(path), column
        self.name = ",".join(os.path.basename(p) for p in self.paths[:3])
        groups: list[Group] = []
        for file, p in enumerate(self.paths):
            try:
                parquet = pyarrow.parquet.ParquetFile(p)
            except (pyarrow.ArrowInvalid, OSError) as error:
                raise UserError(f"{p} is not a Parquet file ({str(error).splitlines()[0]})") from None
            names = parquet.schema_arrow.names
            if column not in names:
                raise UserError(f"{p}: no column {column!r}; it has {', '.join(names)}")
            kind = parquet.schema_arrow.field(column).type
            if str(kind) not in ("string", "large_string", "string_view"):
                raise UserError(f"{p}: column {column!r} is {kind}, not string")
            # From the footer alone: no text is read before it is asked for.
            metas = [parquet.metadata.row_group(g) for g in range(parquet.num_row_groups)]
            groups += [Group(file, g, meta.num_rows, meta.total_byte_size) for g, meta in enumerate(metas)]
        self._take(groups)

    def _take(self, groups: list[Group]) -> None:
        self.groups = groups
        self.ends = np.cumsum([group.rows for group in groups], dtype=np.int64)
        self._last: tuple[int, list] | None = None

    def cut(self, size: int) -> list[tuple[int, Reader]]:
        parts: list[list[Group]] = []
        for group in self.groups:
            if parts and sum(one.size for one in parts[-1]) + group.size <= size:
                parts[-1].append(group)
            else:
                parts.append([group])
        cut: list[tuple[int, Reader]] = []
        for part in parts:
            reader = copy.copy(self)
            reader._take(part)
            cut.append((sum(group.size for group in part), reader))
        return cut

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i: int) -> Piece:
        group = int(np.searchsorted(self.ends, i, "right"))
        # A group at a time, as reading one row decodes all of its group.
        last = self._last
        if last is None or last[0] != group:
            last = self._last = (group, self._read(group))
        return Piece(last[1][i - int(self.ends[group])] or "")  # negative: counted from the group's end

    def _read(self, group: int) -> list:
        import pyarrow.parquet

        file, number = self.groups[group][:2]
        try:
            return pyarrow.parquet.ParquetFile(self.paths[file]).read_row_group(number, [self.column])[0].to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.paths[file]}: row group {number} is damaged ({reason}); fetch the file again") from None

    def signature(self) -> str:
        return signature(self.paths, "parquet", self.column)

    def inputs(self) -> list[str]:
        return self.paths
