"""Which tokens a masked model is asked for, and what stands in their place; pure numpy, one row at a time.

A row's tokens lie in units (pieces, words, phrases), described by `first` and `sizes`, int [U]: where each unit begins and
how many tokens it has. `order` numbers the units that may be chosen, shuffled. `open`, bool [T]: tokens that may be chosen.
"""

import math

import numpy as np


def budget(length: int, rate: float, most: int) -> int:
    """Tokens to predict in a row of `length`: at least one, rounded as Python does (Devlin et al. 2019, their code)."""
    return min(most, max(1, round(length * rate)))


def stochastic(rng: np.random.Generator, length: int, rate: float) -> int:
    """Round the number up or down at random, so that its mean is exact (Liu et al. 2019, fairseq)."""
    return int(length * rate + rng.random())


def units(starts: np.ndarray, open: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a row at `starts`, bool [T]: give `first`, `sizes` and the numbers of the units that may be chosen.

    A token that may not be chosen is a unit of its own, whatever `starts` says of it and of the token after it.
    """
    begins = starts | ~open
    begins[1:] |= ~open[:-1]
    begins[:1] = True
    first = begins.nonzero()[0]
    sizes = np.diff(first, append=len(starts))
    return first, sizes, open[first].nonzero()[0]


def fill(order: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
    """Take units in the order given until `budget` tokens are full; one that would pass it is skipped."""
    ordered = sizes[order]
    total = ordered.cumsum()
    taken = total.searchsorted(budget, "right")
    left = budget - (int(total[taken - 1]) if taken else 0)
    if not left or taken == len(order):
        return order[:taken]
    more, at = [], taken
    while left:  # at most once for each token that is left
        fits = (ordered[at:] <= left).nonzero()[0]
        if not len(fits):
            break
        at += int(fits[0])
        more.append(order[at])
        left -= int(ordered[at])
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
    """Take runs of n = 1, 2, ... neighbouring units until the budget is full; a run's units follow each other.

    Each run draws n by `shares` and then the next unit in order from which n free neighbours go; one that would pass
    the budget is shortened (Lan et al. 2020, their code, which instead drops a run that meets an earlier one, and so
    takes fewer long runs than its shares say). Each step of the loop is a run, not a token.
    """
    drawn = np.searchsorted(np.cumsum(shares), rng.random(len(order)), "right").clip(max=len(shares) - 1) + 1
    free = np.zeros(len(first) + len(shares), bool)
    free[order] = True
    free, size = free.tolist(), sizes.tolist()
    waiting: list[int] = order[::-1].tolist()
    begins, lengths, used = [], [], 0
    for n in drawn.tolist():
        used_before, put_back = used, []
        while waiting and used < budget:
            unit = waiting.pop()
            if not free[unit]:
                continue
            if not all(free[unit : unit + n]):
                put_back.append(unit)
                continue
            n = longest(size, unit, n, budget - used)
            if n:
                begins.append(unit)
                lengths.append(n)
                used += sum(size[unit : unit + n])
                free[unit : unit + n] = [False] * n
                break
        waiting += put_back[::-1]
        if used == used_before:
            break
    lengths = np.array(lengths, np.int64)
    return np.array(begins, np.int64).repeat(lengths) + ramps(lengths)


def longest(size: list[int], unit: int, n: int, room: int) -> int:
    """Shorten a run of n units from `unit` on until its tokens have room; 0: not even one has."""
    while n and sum(size[unit : unit + n]) > room:
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
    """Draw for each token on its own: `mask`, a token of [low, vocab), or itself, by the three shares."""
    draw = rng.random(len(original))
    fed = original.copy()
    fed[draw < shares[0]] = mask
    other = ((draw >= shares[0]) & (draw < shares[0] + shares[1])).nonzero()[0]
    if len(other):
        fed[other] = rng.integers(low, vocab, len(other))
    return fed


def room(length: int, rate: float) -> int:
    """Places for predictions where their number is random: six deviations over the mean of a Poisson law."""
    mean = length * rate
    return min(length, math.ceil(mean + 6 * math.sqrt(mean)))
