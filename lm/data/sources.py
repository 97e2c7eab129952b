"""Sources of running text, by the arguments of configs, and mixtures of sources.

A source is part of a run's config (JSON-able fields only). `open()` returns a `Reader`; nothing is read before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm.data.demo import Documentation
from lm.data.types import JSON_LINES, TABLES, ExampleSource, Piece, Reader, TextSource, format_name, labelled
from lm.errors import UserError


def source_from(text: str | None = None, data: str | None = None) -> TextSource:
    """Return the source of the config arguments `text=PATH|GLOB` and `data=tfds:NAME`; of neither, Documentation."""
    # A format is imported where it is named: a run reads one of them.
    if text and data:
        raise UserError(f"text={text} and data={data} both name a corpus: give one of them")
    if data:
        from lm.data.text.tfds import Tfds

        kind, _, name = data.partition(":")
        if kind != "tfds" or not name:
            raise UserError(f"data={data}: write data=tfds:NAME, or text=PATH for files")
        return Tfds(name=name)
    if not text:
        return Documentation()
    if text.endswith(".parquet"):
        from lm.data.text.parquet import Parquet

        return Parquet(path=text)
    from lm.data.text.files import JsonLines, Text

    return (JsonLines if format_name(text).endswith(JSON_LINES) else Text)(path=text)


def pairs_from(text: str | None = None) -> TextSource:
    """Return the source of pairs of the config argument `text=PATH`; without it, sentences of Documentation to restore.

    Pairs are the fields "source" and "target" of JSON lines or of a table; any other text is restored sentence by sentence.
    """
    if text and format_name(text).endswith(JSON_LINES):
        from lm.data.text.files import JsonLines

        return JsonLines(path=text, fields=("source", "target"))
    if text and format_name(text).endswith(TABLES):
        from lm.data.text.tables import Table

        return Table(path=text, fields=("source", "target"))
    from lm.data.text.restored import Restored

    return Restored(source=source_from(text))  # type: ignore[arg-type]  # its union lists the results of source_from


@dataclass(frozen=True, kw_only=True)
class Mixture(TextSource):
    """Several sources; `weights` are the shares of training rows (not of documents) drawn from each.

    Labelled examples may leave them out: they are the numbers of training examples then. `temperature` T takes weights to
    the power 1 / T: the higher, the more alike (Arivazhagan et al. 2019; Raffel et al. 2020, 3.5.2).
    """

    sources: tuple[TextSource | ExampleSource, ...]  # text, or labelled examples, but not both
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
        return Concatenation(tuple(source.open() for _, source in components(self)))


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


def components(source: TextSource | ExampleSource, sizes: Sequence[int] = ()) -> tuple[tuple[float, Any], ...]:
    """List (share, source): the parts of a mixture with shares that sum to 1, or the source alone.

    `sizes` stand for weights that the mixture leaves out; without them its parts are alike.
    """
    if not isinstance(source, Mixture):
        return ((1.0, source),)
    weights = [w ** (1 / source.temperature) for w in source.weights or sizes or [1] * len(source.sources)]
    return tuple((weight / sum(weights), part) for weight, part in zip(weights, source.sources, strict=True))
