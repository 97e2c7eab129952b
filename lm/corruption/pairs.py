"""Two sentences from a record for a row [CLS] A [SEP] B [SEP], and whether B goes with A; pure numpy.

A record holds twice as many stream tokens as a row takes: a chunk of one document begins with the first sentence of its
first half. BERT reads its documents from the first sentence to the last instead; here any token of the stream is as likely
as any other to be in the first half. A sentence here is the text between two sentence starts, not a grammarian's.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

Sentence = Literal["none", "nsp", "sop", "consecutive"]
Span = tuple[int, int, int]  # number of the record (0: the one given, 1: the other), first token, one past the last


class SentencePair(NamedTuple):
    """Two spans and the label: "nsp" 1 = B is from elsewhere, "sop" 1 = swapped or elsewhere, "consecutive" 1 = B follows."""

    a: Span
    b: Span
    label: int


def sentence_starts(record: Mapping, ends_sentence: np.ndarray, bit: int) -> np.ndarray:
    """Mark the tokens that start a sentence, bool [T]: by the data's marks, else after a full stop.

    `ends_sentence`, bool [V]: pieces that close a sentence; `bit`: the sentence's in `record["marks"]`.
    """
    if record["marked"]:
        starts = (record["marks"] & bit) > 0
        if starts.any():
            return starts
    starts = np.empty(len(record["tokens"]), bool)
    starts[0] = False
    ends = ends_sentence[record["tokens"]]
    np.greater(ends[:-1], ends[1:], out=starts[1:])  # of several full stops in a row the last one closes
    return starts


def chunk(
    rng: np.random.Generator, record: Mapping, starts: np.ndarray, separator: int | None, own: np.ndarray | None = None
) -> tuple[int, np.ndarray] | None:
    """Pick the document of a random token of the first half: return the start of its first whole sentence, and all ends.

    The separator that opens a document is left out. Ends go on to the end of the document or of the record. `own`, bool [T],
    are excluded tokens; returns None where they cover the first half.
    """
    segments = record["segments"]
    real = len(segments) if segments[-1] else int(np.count_nonzero(segments))
    half = min(len(segments) // 2, real)
    token = int(rng.random() * half) if half else 0
    if own is not None and own[:half].any():
        free = np.flatnonzero(~own[:half])
        if not len(free):
            return None
        # The same draw on a smaller range: a row consumes as many random numbers whatever its data.
        token = int(free[token * len(free) // half])
    number = segments[token] if half else 1
    low, high = (int(n) for n in segments[:real].searchsorted((number, number + 1)))
    if own is not None and (taken := np.flatnonzero(own[low:high]) + low).size:  # one segment may hold several documents
        at = int(taken.searchsorted(token))
        low, high = int(taken[at - 1]) + 1 if at else low, int(taken[at]) if at < len(taken) else high
    # A document that starts before the record shows the rest of a sentence first, which is skipped below.
    opens = low < high and (record["positions"][low] == 0 if separator is None else record["tokens"][low] == separator)
    low += bool(opens) and separator is not None
    cuts = starts[low + 1 : high].nonzero()[0] + (low + 1)
    if not opens and len(cuts) and cuts[0] < half:  # text before it is the rest of a sentence
        low, cuts = int(cuts[0]), cuts[1:]
    return low, np.append(cuts, high)


def sentence_pair(
    rng: np.random.Generator,
    records: tuple[Mapping, Mapping],
    starts: tuple[np.ndarray, np.ndarray],
    limit: int,
    sentence: Sentence,
    short_share: float = 0.1,
    separator: int | None = None,
) -> SentencePair:
    """Cut A and B, together at most `limit` tokens (Devlin et al. 2019; "sop": Lan et al. 2020).

    Whole sentences are collected up to a target length, which with probability `short_share` is drawn from 2 to `limit`.
    A is the first few of them, B the rest or, for half of the rows, the text from a random sentence of the other record,
    of another document than A (records that number their "documents"); so too where there is only one sentence. "sop"
    swaps half of the rows instead. Where all of the other record is of A's document, B is the rest, and empty where there
    is none.
    """
    low, ends = chunk(rng, records[0], starts[0], separator)
    target = int(rng.integers(2, limit + 1)) if rng.random() < short_share else limit
    # With the sentence that reaches the target, as in BERT's code: `truncate` cuts the excess.
    ends = ends[: int(ends.searchsorted(low + target)) + 1]
    alone = len(ends) == 1
    # A has at least one sentence and leaves at least one to B.
    middle = int(ends[0 if alone else int(rng.random() * (len(ends) - 1))])
    other = rng.random() < 0.5
    a, b = (0, low, middle), (0, middle, int(ends[-1]))
    if alone or (other and sentence != "sop"):
        excluded = documents_of(records, low, middle)
        span = sentences_of_other(rng, records[1], starts[1], target - (middle - low), separator, excluded)
        # Without text from elsewhere B is the rest after all, and the label must say so.
        alone, other, b = (alone, other, span) if span else (False, False, b)
    a, b = truncate(rng, a, b, limit)
    differs = alone or other
    if sentence == "sop" and other and not alone:
        a, b = b, a
    return SentencePair(a, b, int(differs != (sentence == "consecutive")))


def documents_of(records: tuple[Mapping, Mapping], low: int, high: int) -> np.ndarray | None:
    """Mark the tokens of the second record in the documents of the first one's tokens [low, high), bool [T]."""
    if "documents" not in records[0]:
        return None
    mine, there = records[0]["documents"][low : max(high, low + 1)], records[1]["documents"]
    return there == mine[0] if mine.min() == mine.max() else np.isin(there, mine)


def sentences_of_other(
    rng: np.random.Generator, record: Mapping, starts: np.ndarray, wanted: int, separator: int | None, own: np.ndarray | None
) -> Span | None:
    """Select sentences of the other record, from a random one on, with at least `wanted` tokens and one sentence.

    None from A's `own` documents; returns None where there is nothing else.
    """
    part = chunk(rng, record, starts, separator, own)
    if part is None:
        return None
    low, ends = part
    begins = int(ends[:-1].searchsorted(len(starts) // 2))  # those in the first half have room after them
    skipped = int(rng.random() * (begins + 1))
    low = int(ends[skipped - 1]) if skipped else low
    ends = ends[skipped:]
    return 1, low, int(ends[min(int(ends.searchsorted(low + wanted)), len(ends) - 1)])


def truncate(rng: np.random.Generator, a: Span, b: Span, limit: int) -> tuple[Span, Span]:
    """Cut the longer one, B on ties, token by token until both fit; each token from the front or back, by a coin.

    Written out: the longer comes down to the other, then they take turns.
    """
    (_, a_low, a_high), (_, b_low, b_high) = a, b
    size_a, size_b = a_high - a_low, b_high - b_low
    if size_a + size_b <= limit:
        return a, b
    if size_b <= limit // 2:
        kept_a, kept_b = limit - size_b, size_b
    elif size_a <= (limit + 1) // 2:
        kept_a, kept_b = size_a, limit - size_a
    else:
        kept_a, kept_b = (limit + 1) // 2, limit // 2
    return shorten(rng, a, kept_a), shorten(rng, b, kept_b)


def shorten(rng: np.random.Generator, span: Span, kept: int) -> Span:
    """Cut tokens from both sides of a span."""
    record, low, high = span
    cut = high - low - kept
    # A coin for each token is one binomial draw for all.
    front = int(rng.binomial(cut, 0.5)) if cut else 0
    return record, low + front, low + front + kept
