"""Cut a window of the stream into sentences; pure numpy."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lm.corruption.pairs import sentence_starts
from lm.data.text.words import SENTENCE


class Sentences(NamedTuple):
    """Tokens without separators and padding, [n], and each sentence's start, end and document, [U]."""

    tokens: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    documents: np.ndarray


def sentences(record: Mapping[str, Any], ends_sentence: np.ndarray, separator: int | None) -> Sentences:
    """Cut at full stops (or the data's own marks) and at documents; the first piece may be the rest of a sentence."""
    tokens, segments = record["tokens"], record["segments"]
    starts = sentence_starts(record, ends_sentence, SENTENCE).copy()
    kept = segments > 0
    starts[1:] |= segments[1:] != segments[:-1]
    if separator is not None:
        # A document starts a sentence even in a row of one segment, where only its separator shows it.
        edges = tokens == separator
        starts[1:] |= edges[:-1]
        kept &= ~edges
    tokens, starts = tokens[kept], starts[kept]
    starts[:1] = True
    begins = np.flatnonzero(starts)
    return Sentences(tokens, begins, np.append(begins[1:], len(tokens))[: len(begins)], segments[kept][begins])
