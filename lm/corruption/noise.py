"""BART's noising functions (Lewis et al. 2020, 2.2), on blocks of tokens; numpy, no loop over tokens.

A block is int32 [T] with one untouched token at either end (<s> and </s>). `starts`, bool [T], marks the starts of words;
neither end of a block may be one. Order and rounding are those of fairseq's denoising task.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Replace = Literal["one", "each", "none"]


@dataclass(frozen=True, kw_only=True)
class Fillers:
    """Replacements of removed text: `mask`, or with probability `random` one of `ordinary`, int [K] ids."""

    mask: int
    random: float = 0.0
    ordinary: np.ndarray | None = None

    def draw(self, rng: np.random.Generator, flags: np.ndarray) -> np.ndarray:
        """Fill an array like `flags`, bool: a random token where it is true, a mask elsewhere."""
        filled = np.full(len(flags), self.mask, np.int32)
        if self.ordinary is not None and self.random and flags.any():
            filled[flags] = rng.choice(self.ordinary, np.count_nonzero(flags))
        return filled


@lru_cache(maxsize=8)
def poisson(mean: float, entries: int = 128, floor: float = 1e-7) -> np.ndarray:
    """Return P(length <= k), k = 0, 1, ..., of a Poisson distribution cut after its first probability under `floor`."""
    k = np.arange(entries)
    shares = np.exp(k * math.log(mean) - mean - np.cumsum(np.log(np.maximum(k, 1))))
    # Beyond the mean only: with a large mean the first probabilities are under the floor as well.
    last = np.flatnonzero((shares < floor) & (k > mean))
    shares = shares[: last[0] + 1] if len(last) else shares
    table = np.cumsum(shares / shares.sum())
    # Exactly 1 despite rounding, so that no draw falls behind the table.
    table[-1] = 1.0
    table.flags.writeable = False
    return table


def permute_sentences(rng: np.random.Generator, block: np.ndarray, ends: np.ndarray, share: float = 1.0) -> np.ndarray:
    """Shuffle a random `share` of the sentences, rounded up, among their own places.

    `ends`, bool [T]: tokens that close a sentence. Of several in a row only the first does; the block's end closes the
    last sentence, and full stops that directly precede the block's end stay there.
    """
    if len(block) < 4:
        return block
    ends = ends.copy()
    # <s> ends no sentence; the text's last token does, full stop or not.
    ends[0], ends[-2] = False, True
    stops = np.flatnonzero(ends[1:-1] & ~ends[:-2]) + 2  # one past each sentence
    count = len(stops)
    begins = np.concatenate(([1], stops[:-1]))
    chosen = rng.permutation(count)[: math.ceil(count * share)]
    order = np.arange(count)
    # The chosen sentences exchange their places; all others keep theirs.
    order[np.sort(chosen)] = chosen
    sizes = (stops - begins)[order]
    first = np.cumsum(sizes) - sizes
    result = block.copy()
    # One gather: each token's place is its sentence's old start plus its offset there.
    result[1 : stops[-1]] = block[np.repeat(begins[order] - first, sizes) + np.arange(stops[-1] - 1)]
    return result


def span_lengths(rng: np.random.Generator, words: int, table: np.ndarray) -> np.ndarray:
    """Draw lengths until they hold `words` words and shorten the last to fit: int [K], zeros among them."""
    drawn = np.zeros(0, np.int64)
    while drawn.sum() < words:
        drawn = np.concatenate([drawn, np.searchsorted(table, rng.random(words // 2 + 8), "right")])
    total = np.cumsum(drawn)
    last = np.searchsorted(total, words)
    lengths = drawn[: last + 1]
    lengths[-1] -= total[last] - words
    return lengths


def cover(
    rng: np.random.Generator,
    block: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    fillers: Fillers,
    replace: Replace = "one",
) -> np.ndarray:
    """Replace spans of `lengths` words (all above 0), each from a random word start of its own.

    "one": by one filler a span, "each": by one a token, "none": by nothing. Spans end with the block's last
    word at the latest; one that runs over the start of another swallows its filler, so that the two become one.
    """
    words = np.flatnonzero(starts)
    chosen = rng.permutation(len(words))[: len(lengths)]
    flags = rng.random(len(chosen)) < fillers.random
    low = words[chosen]
    # A span ends where the next word starts, the last one before </s>.
    high = np.append(words, len(block) - 1)[np.minimum(chosen + lengths[: len(chosen)], len(words))]
    block = block.copy()
    if replace == "one":
        block[low] = fillers.draw(rng, flags)
        return block[~inside(low + 1, high, len(block))]
    covered = inside(low, high, len(block))
    if replace == "none":
        return block[~covered]
    block[covered] = fillers.draw(rng, inside(low[flags], high[flags], len(block))[covered])
    return block


def inside(low: np.ndarray, high: np.ndarray, length: int) -> np.ndarray:
    """Mark, bool [length], the union of the ranges [low, high)."""
    edges = np.bincount(low, minlength=length + 1) - np.bincount(high, minlength=length + 1)
    return np.cumsum(edges[:length]) > 0


def insert(rng: np.random.Generator, block: np.ndarray, count: int, fillers: Fillers) -> np.ndarray:
    """Put `count` fillers at random places between the ends; with random ones, that share of them rounded up."""
    if not count:
        return block
    length = len(block) + count
    # <s> and </s> stay the frame of the source: no filler goes outside of them.
    places = rng.permutation(length - 2)[:count] + 1
    result = np.empty(length, np.int32)
    result[places] = fillers.draw(rng, np.arange(count) < math.ceil(count * fillers.random))
    kept = np.ones(length, bool)
    kept[places] = False
    result[kept] = block
    return result


def budget(share: float, words: int | np.integer) -> int:
    """Round `share` of the words up, but not where the product is whole and only its float is not."""
    return min(int(words), math.ceil(share * words - 1e-9))


def infill(
    rng: np.random.Generator,
    block: np.ndarray,
    starts: np.ndarray,
    share: float,
    table: np.ndarray,
    fillers: Fillers,
    replace: Replace = "one",
) -> np.ndarray:
    """Text infilling: spans with `share` of the words, of lengths by `table`; spans of length 0 become insertions."""
    words = budget(share, np.count_nonzero(starts))
    if not words:
        return block
    lengths = span_lengths(rng, words, table)
    spans = lengths[lengths > 0]
    return insert(rng, cover(rng, block, starts, spans, fillers, replace), len(lengths) - len(spans), fillers)


def mask(
    rng: np.random.Generator,
    block: np.ndarray,
    starts: np.ndarray,
    share: float,
    fillers: Fillers,
    replace: Replace = "each",
) -> np.ndarray:
    """Token masking: that share of the units in `starts`, one by one; deletion when `replace` is "none"."""
    lengths = np.ones(budget(share, np.count_nonzero(starts)), np.int64)
    return cover(rng, block, starts, lengths, fillers, replace) if len(lengths) else block


def rotate(rng: np.random.Generator, block: np.ndarray) -> np.ndarray:
    """Document rotation: start the text at a uniformly random token."""
    offset = rng.integers(1, max(1, len(block) - 1), endpoint=True)
    return np.concatenate([block[:1], block[offset:-1], block[1:offset], block[-1:]])
