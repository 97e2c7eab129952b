"""Permutation language modelling: targets, their order, and the two texts of a row (XLNet, Yang et al. 2019).

As the release builds its data (https://github.com/zihangdai/xlnet, data_utils.py), but with ranks in place of masks: a
query sees the keys whose rank is below its reach, so two numbers a position stand for the T x T mask.
"""

import functools

import numpy as np

NEVER = np.iinfo(np.int32).max  # rank of padding


@functools.cache
def shares(longest: int) -> np.ndarray:
    """Cumulated probability of spans of 1, ..., longest tokens, each with p in proportion to 1 / n."""
    weights = 1 / np.arange(1, longest + 1)
    return np.cumsum(weights / weights.sum())


def spans(
    rng: np.random.Generator, starts_T: np.ndarray, goal: int, alpha: int, beta: int, longest: int
) -> list[tuple[int, int]]:
    """Choose spans [begin, end) of at most `goal` tokens in all, walking over the text from its beginning.

    A span of n tokens has a context of n * alpha // beta tokens, a random part of it before and the rest after, and
    begins at the next word start. The release means n words but tests the span's first position for the end of a
    word, so that n tokens are taken; and it leaves out a span that would touch the end.
    """
    size = len(starts_T)
    # The next word start from each position on, by one backward pass.
    at = np.where(starts_T, np.arange(size), size)
    next_start = np.minimum.accumulate(at[::-1])[::-1].tolist()
    # A span has at least one token: `goal` draws are enough.
    lengths = np.searchsorted(shares(longest), rng.random(goal), side="right") + 1
    chosen, place, remaining = [], 0, goal
    for n, share in zip(lengths.tolist(), rng.random(goal).tolist()):
        n = min(n, remaining, longest)
        context = n * alpha // beta
        before = int(share * context)
        begin = place + before
        if remaining == 0 or begin >= size:
            break
        begin = next_start[begin]
        end = begin + n
        if end >= size:
            break
        chosen.append((begin, end))
        remaining -= n
        place = end + context - before
    return chosen


def choose(
    rng: np.random.Generator, starts_T: np.ndarray, free_T: np.ndarray, goal: int, alpha: int, beta: int, longest: int
) -> np.ndarray:
    """Mark `goal` targets among the `free_T` tokens, bool (T,): spans, then single tokens at random for the rest.

    Fewer where fewer are free.
    """
    edges = np.zeros(len(starts_T) + 1, np.int8)
    if chosen := spans(rng, starts_T, goal, alpha, beta, longest):
        begins, ends = zip(*chosen)
        edges[list(begins)] += 1
        edges[list(ends)] -= 1
    marked = (np.cumsum(edges[:-1]) > 0) & free_T
    missing = goal - np.count_nonzero(marked)
    if missing > 0:
        marked[rng.permutation(np.flatnonzero(free_T & ~marked))[:missing]] = True
    return marked


def orders(rng: np.random.Generator, length: int, size: int) -> np.ndarray:
    """Draw the rank of each position in the order of prediction: one permutation, repeated every `size` positions."""
    order = rng.permutation(size)
    return (np.arange(0, length, size)[:, None] + order).reshape(-1)


def ranks(order_T: np.ndarray, target_T: np.ndarray, functional_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn an order into (rank, reach).

    Context tokens, neither target nor functional, have rank -1: all see them. A target does not see itself; a functional
    token does, and context tokens see each other.
    """
    rank = np.where(target_T | functional_T, order_T, -1)
    return rank, np.where(target_T, rank, rank + 1)


def join(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Put the (rank, reach) of two halves together: the second sees all of the first, and not conversely."""
    above = len(first[0]) + 1
    rank, reach = (np.concatenate([a, b + above]).astype(np.int32) for a, b in zip(first, second))
    return rank, reach


def trim(first: int, second: int, limit: int) -> tuple[int, int]:
    """Shorten the longer of two texts from its right, token by token, until both fit."""
    excess = max(0, first + second - limit)
    cut = min(excess, abs(first - second))
    first, second = (first - cut, second) if first > second else (first, second - cut)
    rest = excess - cut
    return first - rest // 2, second - (rest - rest // 2)


def pair(rng: np.random.Generator, borders_T: np.ndarray, limit: int) -> tuple[int, int, int]:
    """Cut a text at a border between sentences: (end of A, end of B, label); B continues A where the label is 1.

    With probability 1/2, or without a border in reach, B comes from elsewhere: the label is 0. `borders_T` is true where
    a sentence begins; the text reaches beyond `limit` up to the end of the sentence there.
    """
    places = np.flatnonzero(borders_T[1:]) + 1
    inner, outer = places[places < limit], places[places >= limit]
    end = int(outer[0]) if len(outer) else len(borders_T)
    other = len(inner) == 0 or rng.random() < 0.5
    cut = int(inner[rng.integers(len(inner))]) if len(inner) else end
    return cut, end, 0 if other else 1


def elsewhere(borders_T: np.ndarray, at: int, length: int) -> tuple[int, int]:
    """Widen [at, at + length) of another text to whole sentences, as far as it goes."""
    places = np.flatnonzero(borders_T)
    low = int(np.searchsorted(places, at, "right"))
    high = int(np.searchsorted(places, at + length))
    return int(places[low - 1]) if low else 0, int(places[high]) if high < len(places) else len(borders_T)
