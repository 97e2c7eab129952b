"""Edits of words for augmentation: replacement, insertion, swap, deletion; and the files of synonyms and translations.

A word is a run of letters and digits, with hyphens, apostrophes and points inside. Chinese and Japanese have no spaces: each of
their characters is a word here. Other scripts without spaces (Thai, Khmer) are not cut: a run of letters stays one word.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.files import Files
from lm.data.labelled.files import Labelled
from lm.data.tokenizer.builders import IDEOGRAPHS
from lm.errors import check

KANA = ((0x3041, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF))
Table = Mapping[str, Sequence[str]]  # a word in lower case and its substitutes


class EditableText:
    """A text to edit: words[i] stands behind gaps[i], the last gap behind all."""

    movable = True

    def __init__(self, values: Mapping[str, Any], name: str):
        parts = _word().split(values[name])
        self.name, self.words, self.gaps = name, parts[1::2], parts[::2]

    def removable(self) -> list[int]:
        """List the words that may be removed; one always stays."""
        return list(range(len(self.words))) if len(self.words) > 1 else []

    def remove(self, i: int) -> None:
        """Remove a word and the space before it; of the first word the space after it."""
        before, after = self.gaps[i : i + 2]
        if i and not before.strip():
            before = ""
        elif not after.strip():
            after = ""
        self.gaps[i : i + 2] = [before + after]
        del self.words[i]

    def insert(self, i: int, word: str) -> None:
        """Put a word before word i, or behind the last, with a space where the words beside it have one."""
        last = i == len(self.words)
        space = "" if _alone(self.words[i - 1 if last else i]) else " "
        at = self.gaps[i]
        self.gaps[i : i + 1] = [space, at] if last else [at, space]
        self.words.insert(i, word)

    def fits(self, i: int, word: str) -> bool:
        return True

    def written(self) -> dict[str, Any]:
        """Return the edited value."""
        pairs = zip(self.gaps, [*self.words, ""])
        return {self.name: "".join(part for pair in pairs for part in pair)}


class EditableWords:
    """Tagged words to edit; every list as long as the words is edited with them.

    Words stay in their order. A substitute is a single word; where words are not `spaced`, one of as many characters.
    """

    movable = False

    def __init__(self, values: Mapping[str, Any], name: str):
        self.name, self.spaced = name, values.get("spaced", True)
        size = len(values[name])
        self.lists = {k: list(v) for k, v in values.items() if isinstance(v, list) and len(v) == size}
        self.words = self.lists[name]

    def removable(self) -> list[int]:
        """List the words tagged O, but not a single one between two entities, which it may separate."""
        own = [tag == "O" for tag in self.lists.get("tags", ())]
        if len(own) < 2:
            return []
        near = [True, *own, True]
        return [i for i, found in enumerate(own) if found and (near[i] or near[i + 2])]

    def remove(self, i: int) -> None:
        for values in self.lists.values():
            del values[i]

    def fits(self, i: int, word: str) -> bool:
        return not re.search(r"\s", word) and (self.spaced or len(word) == len(self.words[i]))

    def written(self) -> dict[str, Any]:
        return dict(self.lists)


Line = EditableText | EditableWords


def line_of(values: Mapping[str, Any], name: str) -> Line:
    """Copy a value for editing."""
    return EditableWords(values, name) if isinstance(values[name], list) else EditableText(values, name)


@functools.cache
def _word() -> re.Pattern:
    # \w leaves out vowel signs and accents that are characters of their own.
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    alone = "".join(f"{chr(low)}-{chr(high)}" for low, high in (*IDEOGRAPHS, *KANA))
    letters = rf"(?:(?![{alone}])[\w{marks}])+"
    return re.compile(rf"([{alone}]|{letters}(?:['’.\-]{letters})*)")


def _alone(word: str) -> bool:
    return any(low <= ord(word[-1]) <= high for low, high in (*IDEOGRAPHS, *KANA))


# -- edits -------------------------------------------------------------------------------------------------------------


def share(rate: float, words: int) -> int:
    """Return the number of words to edit: at least one."""
    # A product like 0.1 x 30 may lie just below the whole number that is meant.
    return max(1, math.floor(rate * words + 1e-9))


def options(line: Line, i: int, table: Table) -> list[str]:
    """List the substitutes of a word that fit its position, capitalised like the word."""
    word = line.words[i]
    substitutes = table.get(word.lower(), ())
    if word[:1].isupper():
        capitals = len(word) > 1 and word.isupper()
        substitutes = [other.upper() if capitals else other[:1].upper() + other[1:] for other in substitutes]
    return [other for other in substitutes if line.fits(i, other)]


def pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def replace(rng: np.random.Generator, line: Line, table: Table, count: int) -> None:
    """Replace `count` words that have synonyms."""
    offers = {i: found for i in range(len(line.words)) if (found := options(line, i, table))}
    for i in rng.permutation(list(offers))[:count].tolist():
        line.words[i] = pick(rng, offers[i])


def insert(rng: np.random.Generator, line: Line, table: Table, count: int) -> None:
    """Insert a synonym of one of the words at a random position, `count` times."""
    words = [word.lower() for word in line.words if word.lower() in table]
    if isinstance(line, EditableText) and words:
        for _ in range(count):
            line.insert(int(rng.integers(len(line.words) + 1)), pick(rng, table[pick(rng, words)]))


def swap(rng: np.random.Generator, line: Line, table: Table, count: int) -> None:
    """Exchange two words, `count` times."""
    for _ in range(count if len(line.words) > 1 and line.movable else 0):
        i, j = rng.choice(len(line.words), 2, replace=False).tolist()
        line.words[i], line.words[j] = line.words[j], line.words[i]


def remove(rng: np.random.Generator, line: Line, table: Table, count: int) -> None:
    """Remove `count` words, or as many as may be removed."""
    for _ in range(count):
        if candidates := line.removable():
            line.remove(pick(rng, candidates))


# -- files -------------------------------------------------------------------------------------------------------------


def synonyms(path: str) -> dict[str, list[str]]:
    """Read groups of words of one meaning, a group a line, tabs or commas between: each word and the others."""
    table: dict[str, list[str]] = {}
    for where, line in _lines(path):
        words = list(dict.fromkeys(filter(None, (part.strip().lower() for part in re.split(r"[\t,]", line)))))
        check(len(words) > 1, f"{where}: {line.strip()!r} is no group; write words with tabs or commas between")
        for word in words:
            _add(table, word, [other for other in words if other != word])
    return table


def dictionary(path: str) -> dict[str, list[str]]:
    """Read word and translation, a pair a line, a tab or spaces between: each word and its translations."""
    table: dict[str, list[str]] = {}
    for where, line in _lines(path):
        pair = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        good = len(pair) == 2 and all(pair)
        check(good, f"{where}: {line.strip()!r} is not a word and its translation; write WORD<TAB>TRANSLATION")
        _add(table, pair[0].lower(), pair[1:])
    return table


def paraphrases(path: str, prefix: str) -> dict[str, list[str]]:
    """Read lines of {"prompt": text, "text": another}: each text, without its prefix, and the others."""
    table: dict[str, list[str]] = {}
    for example in Labelled(path=path).open().examples:
        text = example.get("text").strip()
        if text:
            _add(table, example.get("prompt").removeprefix(prefix).strip(), [text])
    return table


def _lines(path: str) -> list[tuple[str, str]]:
    """List (FILE:LINE, line) of every line that is not blank."""
    return [(where, line) for where, line in Files(path).lines() if line.strip()]


def _add(table: dict[str, list[str]], word: str, others: list[str]) -> None:
    known = table.setdefault(word, [])
    known += [other for other in others if other not in known]
