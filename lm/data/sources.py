"""Where text comes from: small config values, each opened as an indexed reader of pieces.

A source is part of a run's config (JSON-able fields only). `open()` gives a `Reader`; nothing is read before that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from lm.data.examples import ExampleSource, labelled
from lm.errors import UserError


class Piece(NamedTuple):
    """A document, or a part of a long one: `end` says that the document ends with this piece.

    `borders`: where a field ends and the next begins, as offsets into the text (so that no text can look like a border).
    `marks` gives the bits of `lm.data.words` for each character, uint8 [len(text)], when they are asked for.
    """

    text: str
    end: bool = True
    borders: tuple[int, ...] = ()
    marks: Callable[[], np.ndarray] | None = None


def joined(fields: list[str]) -> Piece:
    """Return a document of these fields."""
    return Piece("".join(fields), True, tuple(itertools.accumulate(map(len, fields)))[:-1])


class Reader(Protocol):
    """An indexed sequence of pieces; documents are runs of pieces up to one whose `end` is true."""

    name: str

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Piece: ...
    def signature(self) -> str:
        """Identify the text without reading it: paths, sizes, modification times, versions."""

    def inputs(self) -> list[str]:
        """List the files that the text is read from."""


def documents(reader: Reader) -> Iterator[str]:
    """Give the documents of a reader, put together from their pieces."""
    parts: list[str] = []
    for i in range(len(reader)):
        piece = reader[i]
        parts.append(piece.text)
        if piece.end:
            yield "".join(parts)
            parts = []


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
    """One JSON object a line, one document each: the string in `field`.

    With `fields` a document has several, in this order, for objectives that read them apart (source and target); one
    whose value is a list of strings (the turns of a dialogue) gives as many.
    """

    path: str
    field: str = "text"
    fields: tuple[str, ...] = ()

    def open(self) -> Reader:
        from lm.data.files import JsonLinesReader

        return JsonLinesReader(self.path, self.field, tuple(self.fields))


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
        from lm.data.tables import TableReader

        return TableReader(self.path, tuple(self.fields), self.quoted)


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """Words with tags, as in the People's Daily: `迈向/v 充满/v [中央/n 人民/n 广播/vn 电台/n]nt`.

    `path` may name a file in a tar archive: PATH.tar.gz::MEMBER. The text is the words without spaces; their
    beginnings, those of bracketed phrases and of entities (nr, ns, nt, nz) are its marks (`lm.data.words`).
    `documents`: each line is one, or each block between blank lines, or each file.
    """

    path: str
    documents: Literal["line", "blank", "file"] = "line"

    def __post_init__(self):
        if self.documents not in ("line", "blank", "file"):
            raise UserError(f"Tagged(documents={self.documents!r}): use 'line', 'blank' or 'file'")

    def open(self) -> Reader:
        from lm.data.tagged import TaggedReader

        return TaggedReader(self.path, self.documents)


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
class Restored:
    """The sentences of `source` as pairs: in lower case without punctuation, and as they were written.

    A task of sequence to sequence that any text of a cased script gives: what a speech recogniser's output lacks.
    """

    source: Documentation | Text | JsonLines | Parquet | Tfds = Documentation()

    def open(self) -> Reader:
        from lm.data.restored import RestoredReader

        return RestoredReader(self.source.open())


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several sources; `weights` are the shares of training rows (not of documents) drawn from each.

    Labelled examples may leave them out: they are the numbers of training examples then. `temperature` T takes weights to
    the power 1 / T: the higher, the more alike (Arivazhagan et al. 2019; Raffel et al. 2020, 3.5.2).
    """

    sources: tuple[Source | ExampleSource, ...]
    weights: tuple[float, ...] = ()
    temperature: float = 1.0

    def __post_init__(self):
        counted = not self.weights and labelled(self)
        if not self.sources or (len(self.sources) != len(self.weights) and not counted):
            raise UserError(
                f"Mixture has {len(self.sources)} sources and {len(self.weights)} weights: give one weight a source"
            )
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"Mixture temperature={self.temperature} must be above 0; 1 leaves the weights as they are")
        if any(isinstance(source, Mixture) for source in self.sources):
            raise UserError("Mixture inside a Mixture: list all sources in one and multiply the weights")
        if min(self.weights, default=1) <= 0:
            raise UserError(f"Mixture weights {self.weights} must all be above 0: leave out a source you do not want")

    def open(self) -> Reader:
        return Concatenation(tuple(source.open() for source in self.sources))


Source = Documentation | Text | JsonLines | Table | Tagged | Restored | Parquet | Tfds | Mixture


class Concatenation:
    """Read one reader after another."""

    def __init__(self, readers: tuple[Reader, ...]):
        self.readers = readers
        self.name = "+".join(reader.name for reader in readers)
        kinds = {getattr(reader, "marked", False) for reader in readers}
        self.marked = kinds == {True}
        if len(kinds) > 1:
            raise UserError(f"{self.name}: some of these have marked words and some not; give all of them or none")

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

    def inputs(self) -> list[str]:
        return [path for reader in self.readers for path in reader.inputs()]


def components(source: Source, sizes: Sequence[int] = ()) -> tuple[tuple[float, Source], ...]:
    """List (share, source): the parts of a mixture with shares that sum to 1, or the source alone.

    `sizes` stand for weights that the mixture leaves out; without them its parts are alike.
    """
    if not isinstance(source, Mixture):
        return ((1.0, source),)
    weights = [w ** (1 / source.temperature) for w in source.weights or sizes or [1] * len(source.sources)]
    return tuple((weight / sum(weights), part) for weight, part in zip(weights, source.sources, strict=True))


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


def pairs_from(text: str | None = None) -> Source:
    """Turn the config argument `text=PATH` into pairs: "source" and "target" of JSON lines or of a table, or sentences
    of a text to restore; without it, sentences of Documentation.
    """
    if text and text.endswith((".jsonl", ".json", ".ndjson")):
        return JsonLines(path=text, fields=("source", "target"))
    if text and text.endswith((".csv", ".tsv", ".tab")):
        return Table(path=text, fields=("source", "target"))
    return Restored(source=source_from(text))
