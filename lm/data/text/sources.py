"""Sources of running text, by the arguments of configs: `text=PATH`, `data=tfds:NAME`."""

from __future__ import annotations

from lm.data.demo import Documentation
from lm.data.text.files import JsonLines, Text
from lm.data.text.parquet import Parquet
from lm.data.text.restored import Restored
from lm.data.text.tables import Table
from lm.data.text.tagged import Tagged
from lm.data.text.tfds import Tfds
from lm.errors import UserError

Running = Documentation | Text | JsonLines | Table | Tagged | Restored | Parquet | Tfds


def source_from(text: str | None = None, data: str | None = None) -> Running:
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


def pairs_from(text: str | None = None) -> Running:
    """Turn the config argument `text=PATH` into pairs: "source" and "target" of JSON lines or of a table, or sentences
    of a text to restore; without it, sentences of Documentation.
    """
    if text and text.endswith((".jsonl", ".json", ".ndjson")):
        return JsonLines(path=text, fields=("source", "target"))
    if text and text.endswith((".csv", ".tsv", ".tab")):
        return Table(path=text, fields=("source", "target"))
    return Restored(source=source_from(text))
