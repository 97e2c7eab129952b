"""Rows of inputs and targets, from a record and its denoisers; pure numpy.

`Sides` lays pairs out for an encoder and a decoder, `Line` for a decoder alone. Several documents may share a row,
each a segment with an end and sentinels of its own.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm.corruption.spans import Denoiser, Pair, longest

Example = dict[str, np.ndarray]


@dataclass(frozen=True)
class Symbols:
    """Token ids: `end` of either side (None: there is none), `pad`, sentinels in order, mode tokens by name."""

    end: int | None
    pad: int
    sentinels: np.ndarray
    modes: dict[str, int]


@dataclass(frozen=True)
class Sides:
    """`inputs` tokens for the encoder and `targets` for the decoder, which starts each document with a pad (T5)."""

    inputs: int
    targets: int

    @property
    def room(self) -> tuple[int, ...]:
        return self.inputs, self.targets

    def cost(self, denoiser: Denoiser, raw: int, ended: bool) -> tuple[int, ...]:
        """Return the tokens on each side for `raw` tokens of text, at most."""
        sizes = denoiser.sizes(raw)
        return sizes.inputs + 1, sizes.targets + 1

    def used(self, pair: Pair) -> tuple[int, ...]:
        return len(pair.inputs), len(pair.targets)

    def ends(self, denoiser: Denoiser, ended: bool) -> tuple[bool, bool]:
        """Return whether each side has an end; T5 ends every example, wherever its text was cut."""
        return True, True

    def lay(self, pairs: Sequence[Pair], pad: int) -> Example:
        source, target, begin = (np.full(n, pad, np.int32) for n in (self.inputs, self.targets, self.targets))
        row = {name: np.zeros(self.inputs, np.int32) for name in ("source_segments", "source_positions")}
        row |= {name: np.zeros(self.targets, np.int32) for name in ("segments", "positions")}
        weights, low, at = np.zeros(self.targets, np.float32), 0, 0
        for number, pair in enumerate(pairs, 1):
            high, end = low + len(pair.inputs), at + len(pair.targets)
            source[low:high], target[at:end] = pair
            # Each document is shifted by itself: its first input stays the pad, never the target of another one.
            begin[at + 1 : end], weights[at:end] = pair.targets[:-1], 1
            row["source_segments"][low:high], row["segments"][at:end] = number, number
            row["source_positions"][low:high], row["positions"][at:end] = np.arange(high - low), np.arange(end - at)
            low, at = high, end
        return {"source": source, **row, "tokens": begin, "targets": target, "weights": weights}


@dataclass(frozen=True)
class Line:
    """`length` tokens: the inputs, which see each other, then the targets, each predicted from the token before it."""

    length: int

    @property
    def room(self) -> tuple[int, ...]:
        return (self.length,)

    def cost(self, denoiser: Denoiser, raw: int, ended: bool) -> tuple[int, ...]:
        """Return the tokens of the line for `raw` tokens of text; `ended`: the document's end is among them."""
        # One less: the last token is a target only and is never read.
        return (denoiser.sizes(raw).both + sum(self.ends(denoiser, ended)) - 1,)

    def used(self, pair: Pair) -> tuple[int, ...]:
        return (len(pair.inputs) + len(pair.targets) - 1,)

    def ends(self, denoiser: Denoiser, ended: bool) -> tuple[bool, bool]:
        """Text that is only split continues from one side to the other, and ends with its document."""
        return (False, ended) if denoiser.kind == "split" else (True, True)

    def lay(self, pairs: Sequence[Pair], pad: int) -> Example:
        tokens, target = np.full(self.length, pad, np.int32), np.full(self.length, pad, np.int32)
        row = {name: np.zeros(self.length, np.int32) for name in ("segments", "positions")}
        prefix, weights, low = np.zeros(self.length, bool), np.zeros(self.length, np.float32), 0
        for number, pair in enumerate(pairs, 1):
            whole = np.concatenate(pair)
            high, border = low + len(whole) - 1, low + len(pair.inputs)
            tokens[low:high], target[low:high] = whole[:-1], whole[1:]
            # The last input already predicts the first target, hence border - 1.
            prefix[low:border], weights[border - 1 : high] = True, 1
            row["segments"][low:high], row["positions"][low:high] = number, np.arange(high - low)
            low = high
        return {"tokens": tokens, "targets": target, **row, "prefix": prefix, "weights": weights}


Layout = Sides | Line


def fits(layout: Layout, denoiser: Denoiser, room: Sequence[int], ended: bool = False) -> Callable[[int], bool]:
    """Return the predicate whether a number of tokens of text fits the capacity `room`."""
    return lambda raw: all(cost <= most for cost, most in zip(layout.cost(denoiser, raw, ended), room))


def capacity(layout: Layout, denoiser: Denoiser) -> int:
    """Return the tokens of text of a full row."""
    # An upper limit for the bisection: a side that keeps this share of the text cannot take more.
    kept = 1 - denoiser.rate if denoiser.kind in ("spans", "end") else 0.5
    return longest(int(max(layout.room) / kept) + 2, fits(layout, denoiser, layout.room))


def split_documents(record: Mapping[str, np.ndarray], separator: int | None) -> list[tuple[np.ndarray, bool]]:
    """Return the tokens of each document of a record, and whether it ends before the record does.

    The separators between documents are left out.
    """
    tokens, segments = record["tokens"], record["segments"]
    # A row of one document, the usual case, needs no search for borders.
    if segments[0] and segments[0] == segments[-1]:
        return [(tokens, False)]
    edges = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(tokens)]
    parts = []
    for low, high in itertools.pairwise(edges):
        if segments[low] > 0:
            # The row's first token stays, separator or not, as in a row of one document.
            low += low > 0 and tokens[low] == separator
            parts.append((tokens[low:high], high < len(tokens)))
    return parts


def stretch(rng: np.random.Generator, tokens: np.ndarray, fit: Callable[[int], bool]) -> np.ndarray:
    """Return the tokens, or where they do not fit the longest random stretch that does; it may be empty."""
    size = longest(len(tokens), fit) if len(tokens) > 1 else 0
    spare = len(tokens) - size
    low = rng.integers(spare + 1) if size and spare else 0
    return tokens[low : low + size]


def draw(
    rng: np.random.Generator,
    record: Mapping[str, np.ndarray],
    denoisers: Sequence[Denoiser],
    layout: Layout,
    symbols: Symbols,
    separator: int | None,
) -> Example:
    """Make a row: each document of the record by a denoiser drawn by weight, until the row is full.

    No span crosses from one document into the next. A document of one token has no target and is left out.
    """
    remaining, pairs = list(layout.room), []
    bounds = np.cumsum([denoiser.weight for denoiser in denoisers])
    for tokens, ended in split_documents(record, separator):
        chosen = int(bounds.searchsorted(rng.random() * bounds[-1], "right")) if len(denoisers) > 1 else 0
        denoiser = denoisers[chosen]
        text = stretch(rng, tokens, fits(layout, denoiser, remaining, ended))
        if len(text):
            # A document that was cut does not end here: no end token may say so.
            ends = layout.ends(denoiser, ended and len(text) == len(tokens))
            pair = denoiser.pair(rng, text, symbols.sentinels)
            pairs.append(framed(pair, symbols.modes.get(denoiser.mode), symbols.end, ends))
            remaining = [room - used for room, used in zip(remaining, layout.used(pairs[-1]))]
    return layout.lay(pairs, symbols.pad)


def framed(pair: Pair, mode: int | None, end: int | None, ends: tuple[bool, bool]) -> Pair:
    """Put the mode token before the inputs, and the end after the sides that have one."""

    def token(id: int | None) -> list[np.ndarray]:
        return [] if id is None else [np.array([id], np.int32)]

    inputs = [*token(mode), pair.inputs, *token(end if ends[0] else None)]
    targets = [pair.targets, *token(end if ends[1] else None)]
    return Pair(*(np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in (inputs, targets)))


def restored(inputs: np.ndarray, targets: np.ndarray, sentinels: Sequence[int]) -> list[int]:
    """Put the spans of the targets back into the inputs, for display; targets without sentinels follow."""
    known, last = set(sentinels), None
    spans: dict[int | None, list[int]] = {}
    for token in targets.tolist():
        if token in known:
            last = token
        spans.setdefault(last, []).extend([] if token in known else [token])
    text = [t for token in inputs.tolist() for t in (spans.pop(token, [token]) if token in known else [token])]
    return text + spans.pop(None, [])
