"""Where text comes from: small config values, each opened as an indexed reader of pieces.

A source is part of a run's config (JSON-able fields only). `open()` gives a `Reader`; nothing is read before that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from lm.errors import UserError


class Piece(NamedTuple):
    """A document, or a part of a long one: `end` says that the document ends with this piece."""

    text: str
    end: bool = True


class Reader(Protocol):
    """An indexed sequence of pieces; documents are runs of pieces up to one whose `end` is true."""

    name: str

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Piece: ...
    def signature(self) -> str:
        """Identify the text without reading it: paths, sizes, modification times, versions."""


@dataclass(frozen=True, kw_only=True)
class Documentation:
    """The installed interpreter's documentation: docstrings of the standard library and the language reference.

    `packages` adds the docstrings of installed packages by import name. Nothing is imported or downloaded.
    """

    packages: tuple[str, ...] = ()

    def open(self) -> Reader:
        from lm.data.documentation import DocumentationReader

        return DocumentationReader(self.packages)


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
        from lm.data.files import TextReader

        return TextReader(self.path, self.documents)


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """One JSON object a line, one document each: the string in `field`."""

    path: str
    field: str = "text"

    def open(self) -> Reader:
        from lm.data.files import JsonLinesReader

        return JsonLinesReader(self.path, self.field)


@dataclass(frozen=True, kw_only=True)
class Parquet:
    """One row, one document: the string in `column`."""

    path: str
    column: str = "text"

    def open(self) -> Reader:
        from lm.data.files import ParquetReader

        return ParquetReader(self.path, self.column)


@dataclass(frozen=True, kw_only=True)
class Tfds:
    """A TensorFlow Datasets set in array_record form, read without TensorFlow.

    `data_dir` may be the usual root of data sets, or the folder of one prepared set (with dataset_info.json in it).
    """

    name: str
    split: str = "train"
    field: str = "text"
    data_dir: str | None = None

    def open(self) -> Reader:
        from lm.data.published import TfdsReader

        return TfdsReader(self.name, self.split, self.field, self.data_dir)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several sources; `weights` are the shares of training rows (not of documents) drawn from each."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if not self.sources or len(self.sources) != len(self.weights):
            raise UserError(
                f"Mixture has {len(self.sources)} sources and {len(self.weights)} weights: give one weight a source"
            )
        if any(isinstance(source, Mixture) for source in self.sources):
            raise UserError("Mixture inside a Mixture: list all sources in one and multiply the weights")
        if min(self.weights) <= 0:
            raise UserError(f"Mixture weights {self.weights} must all be above 0: leave out a source you do not want")

    def open(self) -> Reader:
        return Concatenation(tuple(source.open() for source in self.sources))


Source = Documentation | Text | JsonLines | Parquet | Tfds | Mixture


class Concatenation:
    """Read one reader after another."""

    def __init__(self, readers: tuple[Reader, ...]):
        self.readers = readers
        self.name = "+".join(reader.name for reader in readers)

    def __len__(self) -> int:
        return sum(len(reader) for reader in self.readers)

    def __getitem__(self, i: int) -> Piece:
        for reader in self.readers:
            if i < len(reader):
                return reader[i]
            i -= len(reader)
        raise IndexError(i)

    def signature(self) -> str:
        return "\n".join(reader.signature() for reader in self.readers)


def components(source: Source) -> tuple[tuple[float, Source], ...]:
    """List (share, source): the parts of a mixture with shares that sum to 1, or the source alone."""
    if not isinstance(source, Mixture):
        return ((1.0, source),)
    return tuple((weight / sum(source.weights), part) for weight, part in zip(source.weights, source.sources))


def source_from(text: str | None = None, data: str | None = None) -> Source:
    """Turn the config arguments `text=PATH|GLOB` and `data=tfds:NAME` into a source; neither gives Documentation."""
    if text and data:
        raise UserError(f"text={text} and data={data} both name a corpus: give one of them")
    if data:
        kind, _, name = data.partition(":")
        if kind != "tfds" or not name:
            raise UserError(f"data={data}: write data=tfds:NAME, or text=PATH for files")
        return Tfds(name=name)
    if not text:
        return Documentation()
    if text.endswith((".jsonl", ".json", ".ndjson")):
        return JsonLines(path=text)
    if text.endswith(".parquet"):
        return Parquet(path=text)
    return Text(path=text)
