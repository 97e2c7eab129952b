"""BART's noise: hand-made blocks, and counts over a million tokens against the laws they are drawn from."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.corruption.noise import (
    Fillers,
    budget,
    cover,
    infill,
    insert,
    inside,
    mask,
    permute_sentences,
    poisson,
    rotate,
    span_lengths,
)

BEGIN, END, MASK, STOP = 0, 2, 4, 5
FILLERS = Fillers(mask=MASK)
RANDOM = Fillers(mask=MASK, random=0.1, ordinary=np.arange(3, 1000))


def block(*tokens: int) -> np.ndarray:
    return np.array([BEGIN, *tokens, END], np.int32)


def words_of(tokens: np.ndarray, every: int = 1) -> np.ndarray:
    """Word starts: every so many tokens, never at the ends."""
    starts = np.arange(len(tokens)) % every == (1 % every)
    starts[[0, -1]] = False
    return starts


# -- the table ---------------------------------------------------------------------------------------------------------


def test_poisson_table():
    """Recomputed the plain way: probabilities up to and with the first below 1e-7, scaled to one."""
    for mean in (1.0, 3.0, 3.5):
        shares = []
        for k in range(128):
            shares.append(math.exp(-mean) * mean**k / math.factorial(k))
            if shares[-1] < 1e-7:
                break
        np.testing.assert_allclose(poisson(mean), np.cumsum(shares) / np.sum(shares), atol=1e-12)
    assert len(poisson(3.0)) == 18
    assert len(poisson(30.0)) > 60  # its first entry is below the floor as well, and does not end the table


# -- sentences ---------------------------------------------------------------------------------------------------------


def sentences(tokens: np.ndarray) -> list[tuple[int, ...]]:
    """Cut between the ends after each full stop."""
    found, current = [], []
    for token in tokens[1:-1]:
        current.append(int(token))
        if token == STOP:
            found.append(tuple(current))
            current = []
    return found + ([tuple(current)] if current else [])


def test_sentences_keep_their_words():
    text = block(10, 11, STOP, 12, STOP, 13, 14, 15, STOP)
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = permute_sentences(rng, text, text == STOP)
        assert sorted(sentences(found)) == sorted(sentences(text))
        assert (found[0], found[-1]) == (BEGIN, END)
    np.testing.assert_array_equal(text, block(10, 11, STOP, 12, STOP, 13, 14, 15, STOP))


def test_sentence_orders_are_uniform():
    """Four sentences, 24,000 draws: each of the 24 orders within 5 standard errors."""
    text = block(10, STOP, 11, 12, STOP, 13, STOP, 14, 15, 16)
    rng, counts = np.random.default_rng(1), {}
    for _ in range(24_000):
        key = tuple(x[0] for x in split(permute_sentences(rng, text, text == STOP)))
        counts[key] = counts.get(key, 0) + 1
    assert set(counts) == set(itertools.permutations((10, 11, 13, 14)))
    error = math.sqrt(24_000 / 24 * 23 / 24)
    assert max(abs(n - 1000) for n in counts.values()) < 5 * error


def split(tokens: np.ndarray) -> list[tuple[int, ...]]:
    """Cut where one of the four sentences above begins."""
    text = [int(t) for t in tokens[1:-1]]
    at = sorted(text.index(first) for first in (10, 11, 13, 14))
    return [tuple(text[low:high]) for low, high in zip(at, [*at[1:], len(text)])]


def test_only_the_first_full_stop_of_a_run_ends_a_sentence():
    """The others open the next sentence; those before the block's end stay there."""
    text = block(10, STOP, STOP, 11, STOP, STOP, STOP)
    rng = np.random.default_rng(0)
    found = {tuple(permute_sentences(rng, text, text == STOP)) for _ in range(50)}
    swapped = block(STOP, 11, STOP, 10, STOP, STOP, STOP)
    assert found == {tuple(text), tuple(swapped)}


def test_share_of_permuted_sentences():
    """Half of ten sentences, rounded up: at most five leave their place, and all do so equally often."""
    text = block(*itertools.chain(*((10 + i, STOP) for i in range(10))))
    rng, moved, draws = np.random.default_rng(2), np.zeros(10), 4000
    for _ in range(draws):
        changed = (permute_sentences(rng, text, text == STOP, 0.5) != text)[1:-1:2]
        assert changed.sum() <= 5
        moved += changed
    expected = 0.5 * 4 / 5  # taking part, and not drawing one's own place
    error = math.sqrt(expected * (1 - expected) / draws)
    assert np.abs(moved / draws - expected).max() < 5 * error


@pytest.mark.parametrize("text", [block(), block(7), block(STOP), block(STOP, STOP), block(STOP, 7)])
def test_nothing_to_permute(text):
    rng = np.random.default_rng(0)
    for _ in range(10):
        assert sorted(permute_sentences(rng, text, text == STOP)) == sorted(text)


# -- infilling ---------------------------------------------------------------------------------------------------------


def test_span_lengths_follow_the_poisson_table():
    """Before spans merge: over 10^6 masked words, chi-square of the lengths (without the trimmed last ones) under the
    99.9 % point; the sum is the budget exactly."""
    rng, table = np.random.default_rng(3), poisson(3.0)
    lengths = []
    for _ in range(1000):
        drawn = span_lengths(rng, 1000, table)
        assert drawn.sum() == 1000
        assert drawn[-1] > 0
        lengths.append(drawn)
    # The draw that reaches the budget is a long one by selection: only the first 200 of each run are free of that.
    counts = np.bincount(np.concatenate([d[:200] for d in lengths]), minlength=len(table))
    expected = 200_000 * np.diff(table, prepend=0)
    tail = 11  # shares below 1e-3 in one class
    counts, expected = (np.append(x[:tail], x[tail:].sum()) for x in (counts, expected))
    assert ((counts - expected) ** 2 / expected).sum() < 31.26  # chi-square, 11 degrees of freedom


def test_share_of_masked_words_is_exact():
    """Over 10^6 one-token words: the spans hold ceil(0.3 words) before they merge, and what is gone after agrees with
    the law of merging, that a word survives when no span reaches it."""
    rng, table = np.random.default_rng(4), poisson(3.0)
    kept = masks = total = spans = zeros = 0
    for _ in range(2000):
        text = np.arange(10, 522, dtype=np.int32)
        found = infill(rng, text, words_of(text), 0.3, table, FILLERS)
        kept += np.count_nonzero(found != MASK) - 2
        masks += np.count_nonzero(found == MASK)
        total += 510
        drawn = span_lengths(rng, budget(0.3, 510), table)
        assert drawn.sum() == 153
        spans += np.count_nonzero(drawn)
        zeros += np.count_nonzero(drawn == 0)
    assert 0.70 < kept / total < 0.78  # 0.7 if no spans met; those that do hide the same word twice
    assert masks < spans + zeros
    # A word survives if no start lies up to length - 1 words before it; starts are distinct and nearly independent.
    starts, shares = spans / total, np.diff(table, prepend=0)
    reach = [shares[k + 1 :].sum() / (1 - shares[0]) for k in range(len(table) - 1)]
    assert kept / total == pytest.approx(np.prod([1 - starts * r for r in reach]), abs=0.005)
    # Every zero is one insertion, so the others are spans whose start no other span has swallowed.
    assert zeros / (spans + zeros) == pytest.approx(math.exp(-3) * 51 / 50, abs=0.005)


def test_one_span_by_hand():
    """Words [10 11] [12] [13 14 15] [16]: a span from the second, two words long, leaves one mask."""
    text = block(10, 11, 12, 13, 14, 15, 16)
    starts = np.isin(text, (10, 12, 13, 16))
    seen = set()
    for seed in range(100):
        seen.add(tuple(cover(np.random.default_rng(seed), text, starts, np.array([2]), FILLERS)[1:-1]))
    assert seen == {(MASK, 13, 14, 15, 16), (10, 11, MASK, 16), (10, 11, 12, MASK), (10, 11, 12, 13, 14, 15, MASK)}


def test_spans_that_meet_become_one():
    """Two spans of three words among four: where the first reaches the second's start, one mask is left."""
    text = block(10, 11, 12, 13)
    found = {
        tuple(cover(np.random.default_rng(seed), text, words_of(text), np.array([3, 3]), FILLERS)[1:-1]) for seed in range(200)
    }
    assert found == {(MASK,), (MASK, MASK), (10, MASK), (10, 11, MASK)}


def grow(text, starts, low, lengths):
    """Let all spans grow token by token, as the paper's code does: the tokens that stay."""
    keep, starts, lengths = np.ones(len(text), bool), starts.copy(), lengths.copy() - 1
    starts[-1] = True
    stopper = np.where(starts, 1, 0)
    stopper[-1] = 10**6
    while len(low):
        lengths = lengths - stopper[low + 1]
        going = lengths >= 0
        low, lengths = low[going] + 1, lengths[going]
        keep[low] = False
    return keep


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12))
def test_spans_grow_as_if_token_by_token(seed, size, count):
    """The union of ranges is what growing all spans in parallel leaves."""
    rng = np.random.default_rng(seed)
    text = np.arange(100, 102 + size, dtype=np.int32)
    starts = rng.random(len(text)) < 0.6
    starts[[0, -1]] = False
    lengths = rng.integers(1, 6, min(count, starts.sum()))
    found = cover(np.random.default_rng(seed), text, starts, lengths, FILLERS)
    words = np.flatnonzero(starts)
    low = words[np.random.default_rng(seed).permutation(len(words))[: len(lengths)]]
    expected = text.copy()
    expected[low] = MASK
    np.testing.assert_array_equal(found, expected[grow(text, starts, low, lengths)])


@pytest.mark.parametrize("replace", ["one", "each", "none"])
def test_what_stands_for_a_span(replace):
    text = block(10, 11, 12, 13)
    starts = np.isin(text, (10, 13))  # words [10 11 12] [13]
    one = np.array([1])
    found = {tuple(cover(np.random.default_rng(s), text, starts, one, FILLERS, replace)[1:-1]) for s in range(9)}
    first = {"one": (MASK, 13), "each": (MASK, MASK, MASK, 13), "none": (13,)}
    last = {"one": (10, 11, 12, MASK), "each": (10, 11, 12, MASK), "none": (10, 11, 12)}
    assert found == {first[replace], last[replace]}


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1, 3]))
def test_ends_stay_and_order_too(seed, size, share, every):
    """Whatever the size: first and last token survive, kept tokens keep their order, the input is not written to."""
    rng = np.random.default_rng(seed)
    text = np.arange(100, 102 + size, dtype=np.int32)
    before = text.copy()
    found = infill(rng, text, words_of(text, every), share, poisson(3.0), FILLERS)
    assert (found[0], found[-1]) == (100, 101 + size)
    rest = found[found != MASK]
    assert (np.diff(rest) > 0).all()
    np.testing.assert_array_equal(text, before)
    assert found.dtype == np.int32


def test_random_fillers():
    """A tenth of the spans' fillers, within 5 standard errors; of n inserted ones ceil(n / 10)."""
    rng, text = np.random.default_rng(5), np.full(502, 2000, np.int32)
    random = total = 0
    for _ in range(400):
        found = cover(rng, text, words_of(text), np.ones(150, np.int64), RANDOM)
        random += np.count_nonzero((found != MASK) & (found != 2000))
        total += 150
    assert abs(random / total - 0.1) < 5 * math.sqrt(0.1 * 0.9 / total)
    for count, expected in ((1, 1), (10, 1), (11, 2)):
        found = insert(rng, text, count, RANDOM)
        assert np.count_nonzero((found != MASK) & (found != 2000)) == expected


# -- the others --------------------------------------------------------------------------------------------------------


def test_insertions_are_uniform_and_never_outside():
    """One filler into four places, 20,000 times, within 5 standard errors."""
    rng, text, counts = np.random.default_rng(6), block(10, 11, 12), np.zeros(6)
    for _ in range(20_000):
        counts[np.flatnonzero(insert(rng, text, 1, FILLERS) == MASK)] += 1
    assert counts[0] == counts[5] == 0
    assert np.abs(counts[1:5] / 20_000 - 1 / 4).max() < 5 * math.sqrt(1 / 4 * 3 / 4 / 20_000)
    assert insert(rng, text, 0, FILLERS) is text


def test_token_masking_and_deletion():
    """Every token equally often, ceil(share) of them each time."""
    rng, text, draws = np.random.default_rng(7), np.arange(100, 112, dtype=np.int32), 5000
    masked, kept = np.zeros(12), np.zeros(12)
    for _ in range(draws):
        found = mask(rng, text, words_of(text), 0.25, FILLERS)
        assert len(found) == 12
        assert np.count_nonzero(found == MASK) == 3  # of ten
        masked += found == MASK
        rest = mask(rng, text, words_of(text), 0.25, FILLERS, "none")
        assert len(rest) == 9
        kept[rest - 100] += 1
    error = 5 * math.sqrt(0.3 * 0.7 / draws)
    assert masked[0] == masked[-1] == 0
    assert kept[0] == kept[-1] == draws
    assert np.abs(masked[1:-1] / draws - 0.3).max() < error
    assert np.abs(kept[1:-1] / draws - 0.7).max() < error


def test_rotation_is_uniform():
    rng, text, counts = np.random.default_rng(8), block(10, 11, 12, 13), {}
    for _ in range(10_000):
        key = tuple(rotate(rng, text)[1:-1])
        counts[key] = counts.get(key, 0) + 1
    # Beginning at the end's place is beginning at the first token: fairseq draws from one place more than there are.
    whole = counts.pop((10, 11, 12, 13))
    assert set(counts) == {(11, 12, 13, 10), (12, 13, 10, 11), (13, 10, 11, 12)}
    error = 5 * math.sqrt(10_000 * 0.2 * 0.8)
    assert max(abs(n - 2000) for n in counts.values()) < error
    assert abs(whole - 4000) < 5 * math.sqrt(10_000 * 0.4 * 0.6)
    assert tuple(rotate(rng, block())) == (BEGIN, END)


def test_inside():
    np.testing.assert_array_equal(inside(np.array([1, 2, 5]), np.array([3, 4, 5]), 7), [0, 1, 1, 1, 0, 0, 0])


def test_budget():
    """0.07 x 100 is 7.000000000000001 in floating point."""
    assert [budget(0.3, n) for n in (0, 1, 3, 4, 10, 11)] == [0, 1, 1, 2, 3, 4]
    assert budget(0.07, 100) == 7
    assert budget(1.0, 5) == 5
