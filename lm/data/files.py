"""Files as records: lines of text, JSON lines and rows of tables, each with its FILE:LINE.

The one place where files of text are opened, decoded and checked. A corpus is read by index from memory maps (`Files.map`,
`Files.text`), so that it may be larger than memory; labelled examples and word lists are read whole (`texts`, `lines`,
`records`). Names that end with .gz or .zst are decompressed as they are read. Every error is a UserError with file and line.
"""

from __future__ import annotations

import csv
import glob
import io
import itertools
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lm.data.packed import Unpacked, codec, read_bytes
from lm.data.types import JSON_LINES, TABLES, format_name
from lm.errors import UserError, check
from lm.strict_json import parse_json

BLOCK = 1 << 26  # bytes searched for line ends at once


class Record(NamedTuple):
    """Values by name, and FILE:LINE for errors."""

    values: dict[str, Any]
    where: str


class Group(NamedTuple):
    """Consecutive files, or a range of bytes, `span`, of a single one; `size`: their bytes."""

    size: int
    paths: list[str]
    span: tuple[int, int] | None = None


class Files:
    """The files behind a path, a glob or a comma list of them; keeps the last one's memory map.

    `group`: those of a group alone.
    """

    def __init__(self, path: str, group: Group | None = None):
        self.paths = group.paths if group else expand(path)
        self.span = group.span if group else None
        self.name = ",".join(dict.fromkeys(os.path.basename(p) for p in self.paths[:3]))
        if len(self.paths) > 3:
            self.name += f",+{len(self.paths) - 3}"
        self._last: tuple[int, mmap.mmap | Unpacked] | None = None

    def inputs(self) -> list[str]:
        return self.paths

    def groups(self, size: int, lines: bool = False) -> list[Group]:
        """Group consecutive files of up to `size` bytes together; a larger file is cut between `lines`, or alone."""
        groups: list[Group] = []
        for file, path in enumerate(self.paths):
            own = os.path.getsize(path)
            if own > size and lines and not codec(path):
                groups += [Group(b - a, [path], (a, b)) for a, b in itertools.pairwise(self._borders(file, size))]
            elif groups and not groups[-1].span and groups[-1].size + own <= size:
                groups[-1] = Group(groups[-1].size + own, [*groups[-1].paths, path])
            else:
                groups.append(Group(own, [path]))
        return groups

    def _borders(self, file: int, size: int) -> list[int]:
        """Return offsets of lines, each the first after `size` bytes from the one before, and the file's end."""
        data, borders = self.map(file), [0]
        while borders[-1] < len(data):
            at = min(borders[-1] + size, len(data))
            line = data.find(b"\n", at, len(data))
            borders.append(line + 1 if line >= 0 else len(data))
        return borders

    # -- by index ------------------------------------------------------------------------------------------------------

    def map(self, file: int) -> mmap.mmap | Unpacked:
        last = self._last
        # One map at a time: a corpus may have more files than a process may hold open.
        if last is None or last[0] != file:
            last = self._last = (file, _mapped(self.paths[file]))
        return last[1]

    def empty(self, file: int) -> bool:
        """Return whether a file has no byte, of which there is no memory map."""
        return not (codec(self.paths[file]) or os.path.getsize(self.paths[file]))

    def first(self, file: int) -> int:
        """Return the offset of the first byte behind a byte-order mark."""
        if self.span and self.span[0]:
            return self.span[0]
        return 3 if self.map(file)[:3] == b"\xef\xbb\xbf" else 0

    def end(self, file: int) -> int:
        """Return the offset behind the last byte."""
        return self.span[1] if self.span else len(self.map(file))

    def line_starts(self, file: int) -> np.ndarray:
        """Return the byte offset of each line, int64 [lines], reading the file once in blocks."""
        if self.empty(file):
            return np.zeros(0, np.int64)
        data, start, end = self.map(file), self.first(file), self.end(file)
        blocks = [np.array([start])]
        for at in range(start, end, BLOCK):
            block = np.frombuffer(data[at : min(at + BLOCK, end)], np.uint8)
            blocks.append(np.flatnonzero(block == ord("\n")) + at + 1)
        starts = np.concatenate(blocks)
        # A line end that closes the file opens no further line.
        return starts[starts < end]

    def text(self, file: int, start: int, stop: int) -> str:
        """Decode bytes [start, stop) of a file."""
        return decode(self.map(file)[start:stop], self.paths[file], start)

    # -- whole ---------------------------------------------------------------------------------------------------------

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield (path, text without a byte-order mark) of each file."""
        for path in self.paths:
            yield path, decode(read_bytes(path), path).removeprefix("\ufeff")

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield (FILE:LINE, line without its "\\n") of each line; the last of a file that ends with "\\n" is empty."""
        for path, text in self.texts():
            # `splitlines` would cut at form feeds and U+2028 as well, and count other lines than editors do.
            for number, line in enumerate(text.split("\n"), 1):
                yield f"{path}:{number}", line

    def records(self, columns: tuple[str, ...] = (), quoted: bool = True) -> Iterator[Record]:
        """Yield the rows of tables and the objects of JSON lines, by the files' endings; blank lines are left out.

        `columns` names the columns of tables that have no row of names.
        """
        for path, text in self.texts():
            if format_name(path).endswith(TABLES):
                yield from _table_records(path, text, columns, quoted)
            elif format_name(path).endswith(JSON_LINES):
                for number, line in enumerate(text.split("\n"), 1):
                    if line.strip():
                        record = json_record(line, f"{path}:{number}")
                        if "\\u" in line:  # the only way to write half a surrogate pair
                            _check_texts(record)
                        yield record
            else:
                raise UserError(f"{path}: name it .csv, .tsv or .jsonl (.gz, .zst), so that its format is known")


def json_record(line: str, where: str) -> Record:
    """Parse a line of JSON, which must be an object."""
    return Record(parse_json(line, where, dict), where)


def table_rows(lines: Iterable[str], path: str, quoted: bool, width: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line's number, fields) of each row of a table, [] for a blank line.

    A quoted field may hold line ends. Every row must have `width` fields (0: as many as the first).
    """
    # The module's own limit of 131,072 characters is shorter than many a document.
    csv.field_size_limit(sys.maxsize)
    rows, line = csv_reader(lines, path, quoted), 1
    try:
        for row in rows:
            if row and len(row) != (width := width or len(row)):
                raise UserError(f"{path}:{line}: {len(row)} fields where there are {width} columns; mend the line")
            yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: {error}; mend the quotes, or give quoted=False") from None


def csv_reader(lines: Iterable[str], path: str, quoted: bool):
    """Parse rows; columns are separated by tabs in .tsv and .tab files, else by commas."""
    delimiter = "\t" if format_name(path).endswith((".tsv", ".tab")) else ","
    if quoted:
        return csv.reader(lines, delimiter=delimiter, strict=True)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)


def _table_records(path: str, text: str, columns: tuple[str, ...], quoted: bool) -> Iterator[Record]:
    names = list(columns)
    for line, row in table_rows(io.StringIO(text, newline=""), path, quoted, len(columns)):
        if row and not names:
            names = row
            check(len(set(names)) == len(names), f"{path}:{line}: two columns of one name: {', '.join(names)}")
        elif row:
            yield Record(dict(zip(names, row)), f"{path}:{line}")


def decode(raw: bytes, path: str, start: int = 0) -> str:
    """Decode UTF-8 from byte `start` of a file on."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start) + (line_ends(path, start) if start else 0)
        raise UserError(
            f"{path}:{line}: byte {start + error.start} (0x{raw[error.start]:02x}) is not UTF-8; "
            f"convert the file first: iconv -f ENCODING -t UTF-8 (or -c to drop such bytes)"
        ) from None


def line_ends(path: str, stop: int) -> int:
    """Count the line ends before byte `stop` of a file."""
    data = _mapped(path)
    return sum(data[at : min(at + BLOCK, stop)].count(b"\n") for at in range(0, stop, BLOCK))


def _mapped(path: str) -> mmap.mmap | Unpacked:
    """Map a file's text, which is not empty."""
    if codec(path):
        return Unpacked(path)
    with open(path, "rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def check_text(text: str, where: str, name: str) -> None:
    """Refuse half a surrogate pair, which JSON can write and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        check(False, f"{where}: {name!r} has half a surrogate pair at character {error.start}; mend the escape")


def _check_texts(record: Record) -> None:
    for name, value in record.values.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                check_text(item, record.where, name)


def expand(path: str) -> list[str]:
    """List the files of a path, a glob or a comma list of them, sorted within each glob."""
    paths: list[str] = []
    for part in filter(None, (p.strip() for p in path.split(","))):
        check("://" not in part, f"{part}: addresses are not read: mount the bucket as a folder, or download the files")
        part = os.path.expanduser(part)
        if os.path.isdir(part):
            raise UserError(f"{part} is a folder: name its files, for example '{os.path.join(part, '*.txt')}'")
        if os.path.exists(part):
            paths.append(part)
        elif glob.has_magic(part):
            matches = sorted(p for p in glob.glob(part, recursive=True) if os.path.isfile(p))
            if not matches:
                raise UserError(f"{part} matches no file: quote the pattern and check it with ls")
            paths += matches
        else:
            raise UserError(f"{part} does not exist: check the path (relative paths start at {os.getcwd()})")
    if not paths:
        raise UserError(f"no file in {path!r}: give a path, a glob, or several joined by commas")
    # Parts of the list may overlap: a file counts once.
    return list(dict.fromkeys(paths))


def signature(paths: list[str], *choices: str) -> str:
    """Identify files without reading them, by path, size and modification time; `choices`: how they are read."""
    stats = [(os.path.abspath(p), os.stat(p)) for p in paths]
    return "\n".join([*choices, *(f"{p} {s.st_size} {s.st_mtime_ns}" for p, s in stats)])
