"""Types of the data room: pieces of running text, labelled examples, their sources and readers."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from lm.errors import UserError

TABLES = (".csv", ".tsv", ".tab")
JSON_LINES = (".jsonl", ".ndjson", ".json")


def format_name(path: str) -> str:
    """Return a path in lower case without the ending of its compression: it ends with that of the format."""
    return re.sub(r"\.(gz|zst)$", "", path.lower())


class Piece(NamedTuple):
    """A document, or a part of a long one; the last part has `end`.

    `borders`: offsets in the text between a document's fields (offsets, because no text can be mistaken for one).
    `marks` computes the bits of `lm.data.text.words` for each character, uint8 [len(text)].
    """

    text: str
    end: bool = True
    borders: tuple[int, ...] = ()
    marks: Callable[[], np.ndarray] | None = None


def joined(fields: list[str]) -> Piece:
    """Make a document of several fields."""
    return Piece("".join(fields), True, tuple(itertools.accumulate(map(len, fields)))[:-1])


class Reader(Protocol):
    """An indexed sequence of pieces; a document is a run of pieces up to one with `end`."""

    name: str

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Piece: ...
    def signature(self) -> str:
        """Identify the text without reading it: paths, sizes, modification times, versions."""

    def inputs(self) -> list[str]:
        """List the files of the text."""


def portions(reader: Reader, size: int) -> list[tuple[int, Reader]]:
    """Cut a reader between documents by its method `cut`; return (bytes of files, reader) of portions of up to `size` bytes.

    A reader without the method, and a file that cannot be cut, is a portion of any size.
    """
    cut = getattr(reader, "cut", None)
    return cut(size) if cut else [(sum(map(os.path.getsize, reader.inputs())), reader)]


class TextSource:
    """Base of the config values that open running text."""

    def open(self) -> Reader:
        """Open the text; nothing is read before this call."""
        raise NotImplementedError


def documents(reader: Reader) -> Iterator[str]:
    """Yield the documents of a reader, each joined from its pieces."""
    parts: list[str] = []
    for i in range(len(reader)):
        piece = reader[i]
        parts.append(piece.text)
        if piece.end:
            yield "".join(parts)
            parts = []


Task = Literal["topic", "marks", "questions", "next", "alike", "summary"]
# Names of ids and labels, which are no text of an example (ner, pos, chunks: CoNLL-2003 in TFDS).
BESIDE = re.compile(r"(?i:(?:.+_)?(?:id|idx|index|guid|uuid|labels?|tags?)|ner|pos|chunks)|.+ID")


class Example(NamedTuple):
    """Values by name (texts, numbers, lists of either), and FILE:LINE for errors.

    A split keeps the examples of one `group` together ("": those with the same texts). `part` is the number of the source
    in a mixture.
    """

    values: dict[str, Any]
    where: str
    group: str = ""
    part: int = 0

    def get(self, name: str, kind: type | tuple[type, ...] = str) -> Any:
        """Return a value of a type; raises UserError with file, line and the example's names or type."""
        if name not in self.values:
            raise UserError(f"{self.where}: no {name!r}; it has {', '.join(self.values) or 'nothing'}")
        value = self.values[name]
        if not isinstance(value, kind):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{self.where}: {name!r} is {type(value).__name__}, not {wanted}")
        return value


@dataclass(frozen=True)
class Read:
    """An opened source: its examples in order."""

    name: str
    examples: tuple[Example, ...]
    signed: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def signature(self) -> str:
        return self.signed


class ExampleSource:
    """Base of the config values that open labelled examples."""

    def open(self) -> Read:
        """Read all examples; raises UserError with file and line for one that cannot be read."""
        raise NotImplementedError


def labelled(source: Any) -> bool:
    """Return whether a source, or every part of a mixture, holds labelled examples."""
    return all(isinstance(one, ExampleSource) for one in getattr(source, "sources", (source,)))


class ExampleSet:
    """One side of a split of labelled examples; reading it as running text raises UserError."""

    def __init__(self, name: str, examples: list[Example]):
        self.name, self.examples = name, examples
        self.documents = len(examples)
        self.raw_bytes = sum(len(text.encode()) for example in examples for text in strings(example.values))

    def __len__(self) -> int:
        return len(self.examples)

    def of(self, part: int) -> ExampleSet:
        """Select the examples of one source of a mixture."""
        return ExampleSet(f"{self.name}, source {part + 1}", [example for example in self.examples if example.part == part])

    def half(self, second: bool) -> ExampleSet:
        """Return every other example: the even ones, or the odd."""
        return ExampleSet(self.name, self.examples[second::2])

    @property
    def separator(self):
        raise UserError(
            f"{self.name} holds labelled examples, which are no running text: take an objective that reads them "
            "(classify, tag, extract, choice, rank, text2text), or another source"
        )

    # Whichever of these an objective of running text reads first, it meets the error above.
    tokens = starts = marks = separator


Rewrite = Callable[[Example, int], Mapping[str, Any]]  # (example, number of the copy) -> the copy's values


class Augmentation:
    """Base of the config values that make changed copies of training examples (`lm.data.corpus.augment`)."""

    copies: int
    fields: tuple[str, ...]
    idle: ClassVar[str]  # causes of no copy at all, for the error

    def open(self) -> Rewrite:
        """Read the files it needs; return the function that makes one copy."""
        raise NotImplementedError


def without_labels(values: dict[str, Any]) -> dict[str, Any]:
    """Drop the ids and labels of an example, by their names."""
    return {name: value for name, value in values.items() if not BESIDE.fullmatch(name)}


def strings(values: dict[str, Any]) -> list[str]:
    """List the strings of an example, those in lists too."""
    texts = []
    for value in values.values():
        texts += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
    return texts
