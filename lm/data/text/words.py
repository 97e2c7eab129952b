"""Marks of the tokens that start words, sentences, phrases and entities, for text without spaces and tagged corpora.

A corpus prepared with `Data(words=...)` or from `Tagged` has a byte of start bits for each token (`record["marks"]`).
Each bit is one way to cut the text into units; a token without the bit continues a unit.

| bit | units |
|---|---|
| WORD | words |
| SENTENCE | sentences: up to 。！？… or to . ! ? before a space, with the closing quotes after it, or to a line end |
| PHRASE | bracketed groups of a tagged corpus, words outside of them |
| ENTITY | names of people, places, organisations and other proper nouns; every character outside of them alone |

These are the three stages of ERNIE (Sun et al. 2019): basic (every token a unit, no bit needed), PHRASE, ENTITY. A token
starts a unit when a unit starts with one of its characters; of a character cut into several tokens the first token does.
Separators have all bits. A corpus without phrases and entities has PHRASE = WORD and ENTITY at every token.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

from lm.data.corpus.store import ALL_MARKS
from lm.data.types import Piece, Reader, portions
from lm.errors import UserError

WORD, SENTENCE, PHRASE, ENTITY = 1, 2, 4, 8
ALL = ALL_MARKS
SENTENCE_END = re.compile(r"""(?:[。！？…]+["'”’」』）》]*|[.!?]+["'”’)\]]*(?=\s|$)|\n)\s*""")


@dataclass(frozen=True, kw_only=True)
class Jieba:
    """Chinese words as the package jieba cuts them (0.42.1: 0.5 to 1 MB of text a second)."""

    def signature(self) -> str:
        return f"jieba {_jieba().__version__}"

    def over(self, reader: Reader) -> Reader:
        """Return a reader whose pieces have these words."""
        return Segmented(reader, self)

    def segment(self, piece: Piece) -> Piece:
        return piece._replace(marks=functools.partial(self._marks, piece.text))

    @staticmethod
    def _marks(text: str) -> np.ndarray:
        return word_marks(len(text), [len(word) for word in _jieba().lcut(text)])


@dataclass(frozen=True, kw_only=True)
class Given:
    """Text whose words are separated by a character, which is removed first."""

    separator: str = " "

    def __post_init__(self):
        if len(self.separator) != 1 or self.separator == "\n":
            raise UserError(f"Given(separator={self.separator!r}): give one character, and not the line end")

    def signature(self) -> str:
        return f"given {self.separator!r}"

    def over(self, reader: Reader) -> Reader:
        """Return a reader whose pieces have these words."""
        return Segmented(reader, self)

    def segment(self, piece: Piece) -> Piece:
        fields = [field.split(self.separator) for field in split_fields(piece.text, piece.borders)]
        whole = ["".join(words) for words in fields]
        borders = tuple(np.cumsum([len(text) for text in whole])[:-1].tolist())
        text = "".join(whole)
        return Piece(text, piece.end, borders, functools.partial(self._marks, text, fields))

    @staticmethod
    def _marks(text: str, fields: list[list[str]]) -> np.ndarray:
        marks = word_marks(len(text), [len(word) for words in fields for word in words])
        # A line end is a word of its own, and no word goes on behind it.
        lines = np.flatnonzero(np.frombuffer(text.encode("utf-32-le"), np.uint32) == 10)
        marks[np.concatenate([lines, lines[lines < len(text) - 1] + 1])] |= WORD | PHRASE
        return marks


Words = Jieba | Given


class Segmented:
    """A reader whose pieces have marks by `words`."""

    marked = True

    def __init__(self, reader: Reader, words: Words):
        if getattr(reader, "marked", False):
            raise UserError(f"{reader.name} has words of its own: leave out words={words}")
        self.reader, self.words, self.name = reader, words, reader.name

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> Piece:
        return self.words.segment(self.reader[i])

    def cut(self, size: int) -> list[tuple[int, Reader]]:
        return [(own, Segmented(reader, self.words)) for own, reader in portions(self.reader, size)]

    def signature(self) -> str:
        return f"{self.reader.signature()}\n{self.words.signature()}"

    def inputs(self) -> list[str]:
        return self.reader.inputs()


@functools.cache
def _jieba():
    try:
        import jieba
    except ImportError:
        raise UserError("words=Jieba() needs the package jieba: pip install jieba==0.42.1") from None
    import logging

    jieba.setLogLevel(logging.WARNING)
    return jieba


def split_fields(text: str, borders: tuple[int, ...]) -> list[str]:
    return [text[a:b] for a, b in zip((0, *borders), (*borders, len(text)))]


def word_marks(length: int, sizes: list[int]) -> np.ndarray:
    """Return the bits of each character, uint8 [length], for words of these sizes that fill the text."""
    marks = np.full(length, ENTITY, np.uint8)
    at = np.cumsum([0, *sizes])[:-1]
    marks[at[at < length]] |= WORD | PHRASE
    return marks


def add_sentences(text: str, marks: np.ndarray) -> np.ndarray:
    """Add the bits of sentences, and all bits to the text's first character."""
    marks = marks.copy()
    starts = [match.end() for match in SENTENCE_END.finditer(text)]
    marks[[at for at in starts if at < len(text)]] |= SENTENCE
    marks[:1] = ALL
    return marks


def token_marks(marks: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Convert the bits of characters [n] to bits of tokens, uint8 [T]; `ends`: the character after each token's last.

    A token covers the characters from the end of the token before it, so also those that the tokenizer dropped; a
    character in several tokens belongs to the first.
    """
    # Ends must not fall, or a difference of the counts below would be negative.
    ends = np.maximum.accumulate(ends) if len(ends) else ends
    bits = np.arange(4, dtype=np.uint8)
    # Running counts of each bit: their differences say which bits a token's characters have, without a loop.
    counts = np.zeros((len(marks) + 1, 4), np.int32)
    np.cumsum(marks[:, None] >> bits & 1, axis=0, out=counts[1:])
    present = np.diff(counts[ends], axis=0, prepend=np.zeros((1, 4), np.int32)) > 0
    return (present << bits).sum(axis=1).astype(np.uint8)
