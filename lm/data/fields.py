"""Where the documents of a stream and their fields lie, and how many adjacent documents fit a row; pure numpy.

In the stream a separator stands before every document, between its fields, and at the end.
"""

from __future__ import annotations

import numpy as np

from lm.data.store import Tokens
from lm.errors import UserError

BLOCK = 1 << 25  # tokens looked at at once


def boundaries(tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (low, high, first): field f is stream positions [low[f], high[f]), document i has fields
    first[i] ... first[i + 1] - 1; all int64. Without a separator every document is one field.
    """
    count = tokens.documents
    if tokens.separator is None or not count:
        return tokens.starts, np.append(tokens.starts[1:], len(tokens))[:count], np.arange(count + 1)
    borders = separators(tokens)
    first = np.searchsorted(borders, tokens.starts)
    if len(borders) < 2 or not np.array_equal(borders[np.minimum(first, len(borders) - 1)], tokens.starts):
        raise UserError("the token file has a document that no separator opens: delete its folder to prepare it again")
    return borders[:-1] + 1, borders[1:], np.append(first, len(borders) - 1)


def separators(tokens: Tokens) -> np.ndarray:
    """Return the stream positions of the separator, int64 ascending, reading the stream once in blocks."""
    found = [
        np.flatnonzero(tokens.tokens[at : at + BLOCK] == tokens.separator) + at for at in range(0, len(tokens), BLOCK)
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


def next_fit(sizes: np.ndarray, limit: tuple[int, ...]) -> np.ndarray:
    """Group adjacent documents into rows: each takes documents as long as all its limits hold.

    `sizes`: int64 [documents, limits], none above its limit. Returns the first document of each row and, at the end,
    the number of documents: int64 [rows + 1].
    """
    count = len(sizes)
    if not count:
        return np.zeros(1, np.int64)
    totals = np.concatenate([np.zeros((1, len(limit)), np.int64), np.cumsum(sizes, axis=0)])
    # Where a row that begins at each document would end; then follow the rows from the first document on.
    ends = [np.searchsorted(column, column[:-1] + most, "right") - 1 for column, most in zip(totals.T, limit)]
    after = np.minimum.reduce(ends).tolist()
    rows = [0]
    while rows[-1] < count:
        rows.append(after[rows[-1]])
    return np.array(rows, np.int64)
