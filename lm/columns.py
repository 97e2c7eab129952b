"""Tokens one above the other: what was written, what is read, what is guessed, aligned for a terminal."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH = 112  # columns of a line


def display_width(text: str) -> int:
    """Count terminal columns: two for a Chinese character, none for a combining mark."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def visible(piece: str) -> str:
    """Write a piece so that it takes a place: without the spaces around it, but spaces alone and line ends as signs."""
    text = piece.strip(" ") or "\u2423" * min(4, len(piece))
    return text.replace("\n", "\u21b5").replace("\t", "\u2192").replace("\r", "\u2190") or "\u00b7"


def side_by_side(
    tokenizer: Any,
    original: np.ndarray,
    fed: np.ndarray,
    places: np.ndarray,
    guesses: np.ndarray | None,
    mask: int,
    starts: np.ndarray,
) -> str:
    """Set a row as it was, int [T], over what is read at some `places`, int [P], and over the guesses there, int [P].

    `fed`: the row as it is read; `mask`: the id shown as ____; `starts`, bool [T]: where words begin.
    """
    text = [visible(piece) for piece in tokenizer.pieces(original)]
    read, guess = [""] * len(text), [""] * len(text)
    asked = [visible(piece) for piece in tokenizer.pieces(fed[places])]
    found = [visible(piece) for piece in tokenizer.pieces(original[places] if guesses is None else guesses)]
    for i, place in enumerate(places.tolist()):
        gap = "_" * min(4, display_width(text[place]))
        read[place] = gap if fed[place] == mask else "." if fed[place] == original[place] else asked[i]
        guess[place] = "=" if guesses is not None and guesses[i] == original[place] else found[i]
    lines = {"text": text, "read": read} | ({} if guesses is None else {"guess": guess})
    return columns(lines, starts)


def columns(lines: Mapping[str, Sequence[str]], starts: Sequence[bool] | None = None, width: int = WIDTH) -> str:
    """Set lines of cells one above the other under a title each, broken where `width` columns are full.

    All lines have equally many cells. A space stands before a cell that begins a word (`starts`; None: all do).
    Empty lines are left out.
    """
    cells = list(zip(*lines.values(), strict=True))
    starts = [True] * len(cells) if starts is None else starts
    widths = [max(map(display_width, cell)) for cell in cells]
    margin = max(map(display_width, lines), default=0)
    blocks, block, used = [], [], margin + 1
    for i, cell in enumerate(cells):
        gap = " " if starts[i] else ""
        if block and used + len(gap) + widths[i] > width:
            blocks.append(block)
            block, used = [], margin + 1
        used += len(gap) + widths[i]
        block.append([gap + text + " " * (widths[i] - display_width(text)) for text in cell])
    blocks.append(block)
    return "\n".join(text for block in blocks for text in _block(list(lines), block, margin))


def _block(titles: list[str], block: list[list[str]], margin: int) -> list[str]:
    rows = ["".join(row).rstrip() for row in zip(*block)]
    return [f"{t}{' ' * (margin - display_width(t))} {row}".rstrip() for t, row in zip(titles, rows) if row]
