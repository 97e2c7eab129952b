"""The targets of a masked model, and their replacements in the input; pure numpy, one row at a time.

A row's tokens lie in units (pieces, words, phrases), described by `first` and `sizes`, int [U]: the position of
each unit's first token, and its number of tokens. `order` numbers the units that may be chosen, shuffled. `open`, bool [T]:
tokens that may be chosen.
"""

import math

import numpy as np


def budget(length: int, rate: float, most: int) -> int:
    """Return the number of targets in a row of `length`: at least one, rounded half to even (Devlin et al. 2019)."""
    return min(most, max(1, round(length * rate)))


def stochastic(rng: np.random.Generator, length: int, rate: float) -> int:
    """Round the number up or down at random, so that its mean is exact (Liu et al. 2019, fairseq)."""
    return int(length * rate + rng.random())


def units(starts: np.ndarray, open: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a row at `starts`, bool [T]: return `first`, `sizes` and the numbers of the units that may be chosen.

    A token that may not be chosen is a unit of its own, regardless of `starts`.
    """
    begins = starts | ~open
    # A token that may not be chosen also ends its unit: the tokens on either side must not become one word.
    begins[1:] |= ~open[:-1]
    begins[:1] = True
    first = begins.nonzero()[0]
    sizes = np.diff(first, append=len(starts))
    return first, sizes, open[first].nonzero()[0]


def fill(order: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
    """Select units in order until the `budget` of tokens is used up; a unit that would exceed it is skipped."""
    # The longest prefix within the budget first, in one look; smaller units behind it then fill the gap.
    ordered = sizes[order]
    total = ordered.cumsum()
    taken = total.searchsorted(budget, "right")
    remaining = budget - (int(total[taken - 1]) if taken else 0)
    if not remaining or taken == len(order):
        return order[:taken]
    more, at = [], taken
    while remaining:  # at most once for each remaining token
        fits = (ordered[at:] <= remaining).nonzero()[0]
        if not len(fits):
            break
        at += int(fits[0])
        more.append(order[at])
        remaining -= int(ordered[at])
        at += 1
    return np.append(order[:taken], more).astype(order.dtype)


def fill_ngrams(
    rng: np.random.Generator,
    order: np.ndarray,
    first: np.ndarray,
    sizes: np.ndarray,
    budget: int,
    shares: tuple[float, ...],
) -> np.ndarray:
    """Select n-grams, runs of n = 1, 2, ... adjacent units, until the budget of tokens is used up.

    Each run draws n by `shares` and then the next unit in order that starts n free units; a run that would exceed the
    budget is shortened (Lan et al. 2020; their code instead drops a run that meets an earlier one, and so selects fewer
    long runs than its shares). Each step of the loop is a run, not a token.
    """
    # As many draws as there could be runs. Clipped, as rounding may leave the last cumulated share just below 1.
    drawn = np.searchsorted(np.cumsum(shares), rng.random(len(order)), "right").clip(max=len(shares) - 1) + 1
    # Extended by the longest run, with units that are not free: no run leaves the row.
    starts = np.zeros(len(first) + len(shares), bool)
    starts[order] = True
    # Lists, whose single elements Python reads several times faster than an array's.
    free, size = starts.tolist(), sizes.tolist()
    waiting: list[int] = order[::-1].tolist()
    begins, lengths, used = [], [], 0
    for n in drawn.tolist():
        used_before, put_back = used, []
        while waiting and used < budget:
            unit = waiting.pop()
            if not free[unit]:
                continue
            if not all(free[unit : unit + n]):
                # Taken neighbours rule out a run of n; a shorter one may start here later, so the unit keeps its turn.
                put_back.append(unit)
                continue
            n = shorten_run(size, unit, n, budget - used)
            if n:
                begins.append(unit)
                lengths.append(n)
                used += sum(size[unit : unit + n])
                free[unit : unit + n] = [False] * n
                break
        waiting += put_back[::-1]
        if used == used_before:
            break
    sizes = np.array(lengths, np.int64)
    return np.array(begins, np.int64).repeat(sizes) + ramps(sizes)


def shorten_run(size: list[int], unit: int, n: int, capacity: int) -> int:
    """Shorten a run of n units from `unit` on to at most `capacity` tokens; 0: not even one unit fits."""
    while n and sum(size[unit : unit + n]) > capacity:
        n -= 1
    return n


def tokens_of(first: np.ndarray, sizes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """List the tokens of the chosen units in the row's order, int [P]."""
    chosen = np.sort(chosen)
    count = sizes[chosen]
    return first[chosen].repeat(count) + ramps(count)


def ramps(lengths: np.ndarray) -> np.ndarray:
    """Count 0, 1, ... for each of the lengths, one after another."""
    return np.arange(lengths.sum()) - (lengths.cumsum() - lengths).repeat(lengths)


def replace(
    rng: np.random.Generator, original: np.ndarray, shares: tuple[float, float, float], mask: int, low: int, vocab: int
) -> np.ndarray:
    """Replace each token independently by `mask`, a token of [low, vocab), or itself, with the three shares."""
    # One number decides among the three, so that no token is both masked and replaced.
    draw = rng.random(len(original))
    fed = original.copy()
    fed[draw < shares[0]] = mask
    other = ((draw >= shares[0]) & (draw < shares[0] + shares[1])).nonzero()[0]
    if len(other):
        fed[other] = rng.integers(low, vocab, len(other))
    return fed


def room(length: int, rate: float) -> int:
    """Return the capacity for a random number of targets: six deviations above the mean of a Poisson distribution."""
    mean = length * rate
    return min(length, math.ceil(mean + 6 * math.sqrt(mean)))
