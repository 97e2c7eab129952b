"""Sentences without their capitals and punctuation, beside the sentences: pairs made of any text."""

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


class RestoredReader:
    """One document a sentence, with two fields; a sentence that comes twice is one. All are kept in memory."""

    def __init__(self, inner: Reader):
        self.inner, self.name = inner, f"restored-{inner.name}"

    @functools.cached_property
    def sentences(self) -> list[str]:
        found: dict[str, None] = {}
        for i in range(len(self.inner)):
            found.update(dict.fromkeys(sentences(self.inner[i].text)))
        return list(found)

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, i: int) -> Piece:
        return joined([bare(self.sentences[i]), self.sentences[i]])

    def signature(self) -> str:
        return f"{self.name} {self.inner.signature()}"

    def inputs(self) -> list[str]:
        return self.inner.inputs()


def sentences(text: str) -> list[str]:
    """Cut text into sentences of 4 to 40 words, wrapped lines joined; what is no prose is left out."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in PARAGRAPH.split(text))
    cut = (sentence for paragraph in paragraphs for sentence in END.split(paragraph))
    return [s for s in cut if len(s.split()) in WORDS and SENTENCE.fullmatch(s)]


def bare(sentence: str) -> str:
    """Give a sentence in lower case without punctuation, as a speech recogniser would."""
    return " ".join(PUNCTUATION.sub(" ", sentence).lower().split())


@dataclass(frozen=True, kw_only=True)
class Restored(TextSource):
    """The sentences of `source` as pairs: in lower case without punctuation, and as they were written.

    A task of sequence to sequence that any text of a cased script gives: what a speech recogniser's output lacks.
    """

    source: Documentation | Text | JsonLines | Parquet | Tfds = Documentation()

    def open(self) -> Reader:
        return RestoredReader(self.source.open())
