"""Character and word noise that human readers tolerate: pure functions (rng, text, rate) -> text.

Character noise falls on letters within words and preserves word boundaries; `rate` is the probability of a hit per letter
(or word). Texts without a candidate position return unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from lm.errors import check, check_choices

Perturbation = Callable[[np.random.Generator, str, float], str]

KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Confusions of optical character recognition: shapes alike in common fonts, in both directions.
SHAPES = (
    *(("0", "O"), ("1", "l"), ("l", "I"), ("5", "S"), ("8", "B")),
    *(("rn", "m"), ("cl", "d"), ("vv", "w"), ("e", "c"), ("h", "b")),
)


def _neighbours() -> dict[str, str]:
    """Map each key to its neighbours in its own and the adjacent rows, each row offset half a key to the right."""
    place = {key: (row, column + row / 2) for row, keys in enumerate(KEYS) for column, key in enumerate(keys)}

    def beside(key: str, other: str) -> bool:
        (row, column), (other_row, other_column) = place[key], place[other]
        return key != other and abs(row - other_row) <= 1 and abs(column - other_column) <= 1

    return {key: "".join(other for other in place if beside(key, other)) for key in place}


NEIGHBOURS = _neighbours()


def _hits(rng: np.random.Generator, allowed: Sequence[bool], rate: float) -> list[int]:
    """Draw positions among the allowed ones."""
    # A draw for every position, allowed or not: a hit depends on its place, not on which letters stand before it.
    return np.flatnonzero((rng.random(len(allowed)) < rate) & np.array(allowed, bool)).tolist()


def swap_letters(rng: np.random.Generator, text: str, rate: float = 0.1) -> str:
    """Exchange neighbouring letters of a word: "wrod"."""
    letters = list(text)
    pairs = [a.isalpha() and b.isalpha() and a != b for a, b in pairwise(text)]
    last = -2
    for i in _hits(rng, pairs, rate):
        if i > last + 1:  # a letter moves one place, not along the word
            letters[i], letters[i + 1], last = letters[i + 1], letters[i], i
    return "".join(letters)


def drop_letters(rng: np.random.Generator, text: str, rate: float = 0.1) -> str:
    """Delete letters, never the last one of a word: "wrd"."""
    gone = set(_hits(rng, [a.isalpha() and b.isalpha() for a, b in pairwise(text + " ")], rate))
    return "".join(c for i, c in enumerate(text) if i not in gone)


def insert_letters(rng: np.random.Generator, text: str, rate: float = 0.1) -> str:
    """Insert a neighbour of the letter's key after it, or the letter again where it has no key: "worfd"."""
    return _replaced(rng, text, rate, lambda c: c + _neighbour(rng, c))


def mistype(rng: np.random.Generator, text: str, rate: float = 0.1) -> str:
    """Substitute a neighbouring key: "wprd". Letters without a key stay."""
    return _replaced(rng, text, rate, lambda c: _neighbour(rng, c))


def change_case(rng: np.random.Generator, text: str, rate: float = 0.1) -> str:
    """Swap the case of letters: "wOrd"."""
    return _replaced(rng, text, rate, str.swapcase)


def _replaced(rng: np.random.Generator, text: str, rate: float, change: Callable[[str], str]) -> str:
    letters = list(text)
    for i in _hits(rng, [c.isalpha() for c in text], rate):
        letters[i] = change(letters[i])
    return "".join(letters)


def _neighbour(rng: np.random.Generator, letter: str) -> str:
    keys = NEIGHBOURS.get(letter.lower(), letter)
    key = keys[rng.integers(len(keys))]
    return key.upper() if letter.isupper() else key


def misread(rng: np.random.Generator, text: str, rate: float = 0.1) -> str:
    """Confuse shapes like optical character recognition: "modern" becomes "modem", "cl" a "d", "l" a "1"."""
    ways = [pair for a, b in SHAPES for pair in ((a, b), (b, a))]
    parts, i = [], 0
    while i < len(text):
        fitting = [(a, b) for a, b in ways if text.startswith(a, i)]
        if fitting and rng.random() < rate:
            a, b = fitting[rng.integers(len(fitting))]
            parts.append(b)
            i += len(a)
        else:
            parts.append(text[i])
            i += 1
    return "".join(parts)


def swap_words(rng: np.random.Generator, text: str, rate: float = 0.1) -> str:
    """Exchange neighbouring words."""
    words = text.split(" ")
    last = -2
    for i in _hits(rng, [bool(a and b) for a, b in pairwise(words)], rate):
        if i > last + 1:
            words[i], words[i + 1], last = words[i + 1], words[i], i
    return " ".join(words)


def drop_words(rng: np.random.Generator, text: str, rate: float = 0.1) -> str:
    """Delete words; at least one stays."""
    words = text.split(" ")
    gone = set(_hits(rng, [bool(word) for word in words], rate))
    kept = [word for i, word in enumerate(words) if i not in gone]
    return " ".join(kept) if any(kept) else text


PERTURBATIONS: dict[str, Perturbation] = {
    "swap_letters": swap_letters,
    "drop_letters": drop_letters,
    "insert_letters": insert_letters,
    "mistype": mistype,
    "change_case": change_case,
    "misread": misread,
    "swap_words": swap_words,
    "drop_words": drop_words,
}


def perturb(texts: Sequence[str], how: Perturbation, rate: float = 0.1, seed: int = 0) -> list[str]:
    """Perturb each text with its own generator (seed, index), so that its noise is independent of the other texts."""
    return [how(np.random.default_rng((seed, i)), text, rate) for i, text in enumerate(texts)]


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """Options of a task that compares clean texts of a file with perturbed ones."""

    path: str
    how: Literal[tuple(PERTURBATIONS)] = "swap_letters"  # type: ignore[valid-type]  # the names of the table
    rate: float = 0.1

    def __post_init__(self):
        check_choices(self)
        check(0 < self.rate <= 1, f"rate={self.rate} must be above 0 and at most 1")

    def perturbed(self, texts: Sequence[str], seed: int) -> list[str]:
        return perturb(texts, PERTURBATIONS[self.how], self.rate, seed)
