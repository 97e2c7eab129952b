"""Pairs made of any text: sentences without capitals and punctuation, and the sentences themselves."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from lm.data.demo import Documentation
from lm.data.text.files import JsonLines, Text
from lm.data.text.parquet import Parquet
from lm.data.text.tfds import Tfds
from lm.data.types import Piece, Reader, TextSource, joined

PARAGRAPH = re.compile(r"\n\s*\n")
END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
# Prose: words and common punctuation, from a capital to a full stop; no code, tables or doctests.
SENTENCE = re.compile(r"[A-Z][\w ,;:'\"()/-]*(?:\.\w[\w ,;:'\"()/-]*)*[.!?]")
PUNCTUATION = re.compile(r"[^\w\s]|_")
WORDS = range(4, 41)


@dataclass(frozen=True, kw_only=True)
class Restored(TextSource):
    """The sentences of `source` as pairs: in lower case without punctuation, and as written.

    A sequence-to-sequence task on any text of a cased script: to restore a speech recogniser's output.
    """

    source: Documentation | Text | JsonLines | Parquet | Tfds = Documentation()

    def open(self) -> Reader:
        return RestoredReader(self.source.open())


class RestoredReader:
    """One document a sentence, without repetitions, with two fields; all are kept in memory."""

    def __init__(self, inner: Reader):
        self.inner, self.name = inner, f"restored-{inner.name}"

    @functools.cached_property
    def sentences(self) -> list[str]:
        unique: dict[str, None] = {}
        for i in range(len(self.inner)):
            unique.update(dict.fromkeys(prose_sentences(self.inner[i].text)))
        return list(unique)

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, i: int) -> Piece:
        return joined([bare(self.sentences[i]), self.sentences[i]])

    def signature(self) -> str:
        return f"{self.name} {self.inner.signature()}"

    def inputs(self) -> list[str]:
        return self.inner.inputs()


def prose_sentences(text: str) -> list[str]:
    """Cut text into sentences of 4 to 40 words, wrapped lines joined; code and tables are left out."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in PARAGRAPH.split(text))
    cut = (sentence for paragraph in paragraphs for sentence in END.split(paragraph))
    return [s for s in cut if len(s.split()) in WORDS and SENTENCE.fullmatch(s)]


def bare(sentence: str) -> str:
    """Lower-case a sentence and remove its punctuation, as a speech recogniser writes it."""
    return " ".join(PUNCTUATION.sub(" ", sentence).lower().split())
