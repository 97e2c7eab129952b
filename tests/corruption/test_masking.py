"""Choosing and replacing tokens: against the procedures in words, and in shares over a million tokens."""

import numpy as np
import pytest

from lm.corruption import masking
from lm.corruption.similar import LONGEST, NEAR, Words, hashes, load, replace_words, save, similar_words


def near(found: float, share: float, count: int) -> None:
    """Within five standard errors of a share of `count` independent draws."""
    assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize(("length", "expected"), [(10, 2), (30, 4), (50, 8), (3, 1), (1, 1), (128, 19), (512, 77), (1000, 77)])
def test_budget(length, expected):
    """round(4.5) is 4 and round(7.5) is 8 in Python; one at least, 77 at most here."""
    assert masking.budget(length, 0.15, 77) == expected


def test_stochastic_rounding_has_the_exact_mean():
    rng = np.random.default_rng(0)
    found = np.array([masking.stochastic(rng, 127, 0.15) for _ in range(20_000)])
    assert set(found.tolist()) == {19, 20}
    near((found == 20).mean(), 127 * 0.15 - 19, len(found))


def test_units():
    starts = np.array([0, 1, 0, 0, 1, 0, 0, 1, 0], bool)
    opened = np.array([0, 1, 1, 1, 1, 0, 1, 1, 0], bool)
    first, sizes, order = masking.units(starts, opened)
    assert first.tolist() == [0, 1, 4, 5, 6, 7, 8]  # after a closed token a unit begins whatever the starts say
    assert sizes.tolist() == [1, 3, 1, 1, 1, 1, 1]
    assert order.tolist() == [1, 2, 4, 5]
    assert starts.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]


def test_a_unit_past_the_budget_is_skipped():
    """BERT's walk in words, against ours."""
    rng = np.random.default_rng(1)
    for _ in range(500):
        sizes = rng.integers(1, 6, rng.integers(1, 40))
        order, budget = rng.permutation(len(sizes)), int(rng.integers(1, 20))
        expected, used = [], 0
        for unit in order:
            if used >= budget:
                break
            if used + sizes[unit] > budget:
                continue
            expected.append(unit)
            used += sizes[unit]
        assert masking.fill(order, sizes, budget).tolist() == expected
    assert masking.fill(np.zeros(0, np.int64), np.zeros(0, np.int64), 3).tolist() == []
    assert masking.fill(np.array([0]), np.array([9]), 3).tolist() == []


@pytest.mark.parametrize("shares", [(0.4, 0.3, 0.2, 0.1), (6 / 11, 3 / 11, 2 / 11)])
def test_ngram_shares(shares):
    """MacBERT's and ALBERT's, over rows of 20,000 units, so that the shortened last run does not show."""
    rng = np.random.default_rng(2)
    counts = np.zeros(len(shares))
    for _ in range(50):
        sizes = rng.integers(1, 3, 20_000)
        first = np.cumsum(sizes) - sizes
        budget = round(0.15 * sizes.sum())
        order = rng.permutation(len(sizes))
        chosen = masking.fill_ngrams(rng, order, first, sizes, budget, shares)
        assert len(set(chosen.tolist())) == len(chosen)
        assert sizes[chosen].sum() in (budget, budget - 1)
        # Runs are listed one after another: one begins where the unit is not the next, or where two runs happen to meet.
        runs = np.diff(np.append(np.flatnonzero(np.diff(chosen, prepend=-9) != 1), len(chosen)))
        counts += np.bincount(runs.clip(max=len(shares)), minlength=len(shares) + 1)[1:]
    for n, share in enumerate(shares):
        near(counts[n] / counts.sum(), share, counts.sum())


def test_ngrams_stay_within_what_is_open_and_within_the_budget():
    rng = np.random.default_rng(3)
    opened = np.ones(60, bool)
    opened[[0, 30, 59]] = False
    for _ in range(300):
        starts = rng.random(60) < 0.6
        first, sizes, order = masking.units(starts, opened)
        chosen = masking.fill_ngrams(rng, rng.permutation(order), first, sizes, 9, (0.1, 0.2, 0.3, 0.4))
        places = masking.tokens_of(first, sizes, chosen)
        assert len(places) <= 9
        assert opened[places].all()
        assert (np.diff(places) > 0).all()
        assert set(np.unique(np.searchsorted(first, places, "right") - 1)) == set(chosen.tolist())  # no unit in parts
    assert len(masking.fill_ngrams(rng, np.zeros(0, np.int64), first, sizes, 9, (0.5, 0.5))) == 0
    one = masking.fill_ngrams(rng, np.array([0]), np.array([0]), np.array([20]), 9, (0.5, 0.5))
    assert len(one) == 0  # nothing has room


def test_eighty_ten_ten():
    """Over a million tokens; random ones uniform from `low` on, masks and specials among them."""
    rng = np.random.default_rng(4)
    original = np.full(10**6, 7, np.int32)
    fed = masking.replace(rng, original, (0.8, 0.1, 0.1), 3, 2, 50)
    assert (original == 7).all()
    other = (fed != 7) & (fed != 3)
    near((fed == 3).mean(), 0.8 + 0.1 / 48, len(fed))
    near((fed == 7).mean(), 0.1 + 0.1 / 48, len(fed))
    counts = np.bincount(fed[other], minlength=50)
    assert counts[:2].sum() == 0
    drawn = np.delete(counts[2:], [1, 5])
    assert abs(drawn - drawn.mean()).max() < 5 * np.sqrt(drawn.mean())


# -- similar words -----------------------------------------------------------------------------------------------------


def corpus(rng, count: int = 30_000):
    """A language of sentences `subject verb object.`: words of one class stand in the same places.

    Words have one or two pieces: class k has the words k*10 ... k*10 + 9, those above 5 with a second piece.
    """
    words = np.stack([rng.integers(0, 10, count) + 10 * k for k in (1, 2, 3)], 1)
    words = np.concatenate([words, np.full((count, 1), 50)], 1).ravel()
    sizes = np.where((words % 10 > 5), 2, 1)
    first = np.cumsum(sizes) - sizes
    tokens = np.zeros(sizes.sum(), np.int32)
    tokens[first] = words
    tokens[first[sizes == 2] + 1] = 60 + words[sizes == 2] % 3
    return tokens, first, sizes


@pytest.fixture(scope="module")
def table() -> Words:
    return similar_words(*corpus(np.random.default_rng(5)), contexts=31)


def test_similar_words_stand_in_the_same_places(table):
    assert len(table.keys) == 31
    assert (np.diff(table.keys.astype(object)) > 0).all()
    for word in range(31):
        kind = table.pieces[word, 0] // 10
        neighbours = table.near[word]
        known = neighbours[neighbours >= 0]
        assert (table.sizes[known] == table.sizes[word]).all()
        assert word not in known
        if kind < 5:
            possible = min(NEAR, (6 if table.sizes[word] == 1 else 4) - 1)
            assert (table.pieces[known[:possible], 0] // 10 == kind).all()


def test_replaced_words(table):
    """80 % neighbours, 10 % words of the same size, 10 % as they are, over all words of a text; unknown ones at random."""
    rng = np.random.default_rng(6)
    tokens, first, sizes = corpus(rng, 25_000)
    kept = tokens.copy()
    fed = replace_words(rng, tokens, first, sizes, table, (0.8, 0.1, 0.1), 0, 70)
    np.testing.assert_array_equal(tokens, kept)
    before, after = (table.find(hashes(x, first, sizes)) for x in (tokens, fed))
    assert (before >= 0).all()
    assert (after >= 0).all()
    np.testing.assert_array_equal(table.sizes[after], sizes)
    by_chance = (1 / np.array([len(group) for group in table.groups])[sizes]).mean()
    near((before == after).mean(), 0.1 + 0.1 * by_chance, len(first))
    similar = (table.near[before] == after[:, None]).any(1)
    assert 0.8 < similar.mean() < 0.9
    unknown = np.full(LONGEST + 3, 65, np.int32)  # longer than any word of the table
    drawn = replace_words(rng, unknown, np.array([0]), np.array([len(unknown)]), table, (0, 1, 0), 2, 9)
    assert (drawn >= 2).all()
    assert (drawn < 9).all()


def test_a_table_is_the_same_after_a_save(table, tmp_path):
    save(table, tmp_path / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    again = load(tmp_path / "a.npz")
    for name in ("keys", "pieces", "sizes", "near"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_a_table_of_nothing():
    """A corpus without a word that occurs often enough: everything is drawn piece by piece."""
    tokens, first, sizes = np.arange(4, dtype=np.int32), np.arange(4), np.ones(4, np.int64)
    table = similar_words(tokens, first, sizes)
    fed = replace_words(np.random.default_rng(0), tokens, first, sizes, table, (0.5, 0.5, 0), 10, 12)
    assert set(fed.tolist()) <= {10, 11}
    empty = similar_words(tokens[:0], first[:0], sizes[:0])
    assert len(empty.keys) == 0
