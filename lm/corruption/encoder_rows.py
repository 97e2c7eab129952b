"""Rows of an encoder: [CLS] text [SEP], and [CLS] A [SEP] B [SEP]; pure numpy.

The rows are those of Devlin et al. 2019 and, for running text, the full sentences of Liu et al. 2019, which go on over
the borders of documents. Padding is at the end of a row, in segment 0.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from lm.corruption.pairs import Sentence, sentence_pair, sentence_starts
from lm.data.text.words import SENTENCE


class Ids(NamedTuple):
    """Tokens by name, and how many there are of all."""

    cls: int
    sep: int
    mask: int
    pad: int
    separator: int | None  # opens each document of the stream
    vocab: int


class Row(NamedTuple):
    """Arrays [T], int32 but for `marks` (uint8, as the record's), of which `real` tokens come before the padding."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    types: np.ndarray
    marks: np.ndarray
    real: int
    label: int = 0  # of the pair
    counts: bool = False  # whether it is a pair: neither sentence is empty


def blank(length: int, real: int, ids: Ids) -> Row:
    """Make a row of padding but for [CLS] and [SEP] around its `real` tokens."""
    tokens, segments = np.full(length, ids.pad, np.int32), np.zeros(length, np.int32)
    if real:
        tokens[0], tokens[real - 1] = ids.cls, ids.sep
        segments[:real] = 1
    types, marks = np.zeros(length, np.int32), np.zeros(length, np.uint8)
    return Row(tokens, segments, counting(length), types, marks, real)


def lay_text(record: Mapping[str, Any], length: int, ids: Ids) -> Row:
    """Lay a window of `length` - 2 tokens out; its segments stay, [CLS] is in its first document and [SEP] in its last.

    Positions continue from [CLS] in the first document and restart at the separator before each other one.
    """
    segments = record["segments"]
    # Padding is at the end, so one look at the last token settles the usual case, a full window.
    real = len(segments) if segments[-1] else int(np.count_nonzero(segments))
    row = blank(length, real + 2 if real else 0, ids)
    if not real:
        return row
    inside = slice(1, real + 1)
    row.tokens[inside] = record["tokens"][:real]
    row.marks[inside] = record["marks"][:real]
    # A single document is one segment with positions from 0: as in the blank row.
    if segments[real - 1] == segments[0]:
        return row
    row.segments[inside] = segments[:real]
    row.segments[0], row.segments[real + 1] = segments[0], segments[real - 1]
    first = int(segments[:real].searchsorted(segments[0], "right"))
    # Copied before writing: all rows of a length share one count.
    positions = row.positions.copy()
    positions[first + 1 : real + 1] = record["positions"][first:real]
    positions[real + 1 :] = positions[real] + 1
    return row._replace(positions=positions)


def lay_pair(
    rng: np.random.Generator,
    record: Mapping[str, Any],
    length: int,
    ids: Ids,
    ends_sentence: np.ndarray,
    sentence: Sentence,
    short_share: float,
) -> Row:
    """Cut two sentences out of a record and its other one, and lay them out; `ends_sentence`: bool [V]."""
    records = record, record["others"][0]
    starts = sentence_starts(records[0], ends_sentence, SENTENCE), sentence_starts(records[1], ends_sentence, SENTENCE)
    pair = sentence_pair(rng, records, starts, length - 3, sentence, short_share, ids.separator)
    sizes = [high - low for _, low, high in (pair.a, pair.b)]
    row = blank(length, sum(sizes) + 3 if any(sizes) else 0, ids)
    if not row.real:
        return row
    at = 1
    for number, low, high in (pair.a, pair.b):
        inside = slice(at, at + high - low)
        row.tokens[inside] = records[number]["tokens"][low:high]
        row.marks[inside] = records[number]["marks"][low:high]
        at = inside.stop + 1
        row.tokens[inside.stop] = ids.sep
    # Type 0 for [CLS] A [SEP], 1 for B [SEP] (Devlin et al. 2019, figure 2).
    row.types[sizes[0] + 2 : at] = 1
    return row._replace(label=pair.label, counts=min(sizes) > 0)


@lru_cache(maxsize=8)
def counting(length: int) -> np.ndarray:
    """Count from 0; shared between rows, so read only."""
    positions = np.arange(length, dtype=np.int32)
    positions.flags.writeable = False
    return positions
