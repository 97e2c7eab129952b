"""The random field against every tagging written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.crf import FORBIDDEN, forbid, log_partition, path_score, viterbi

TAGS = 3


def by_hand(scores, weights, tags) -> float:
    """Score one tagging of one sequence, as the definition says."""
    steps, start, end = weights
    total = start[tags[0]] + end[tags[-1]] + sum(row[tag] for row, tag in zip(scores, tags))
    return float(total + sum(steps[a, b] for a, b in itertools.pairwise(tags)))


def every(scores, weights) -> dict[tuple[int, ...], float]:
    return {tags: by_hand(scores, weights, tags) for tags in itertools.product(range(TAGS), repeat=len(scores))}


@pytest.fixture(scope="module")
def case():
    """Rows of one sequence, of three, and of none; scores and tags of 7 words."""
    rng = np.random.default_rng(0)
    lengths = [[5], [2, 1, 4], []]
    real = np.array([np.arange(7) < sum(row) for row in lengths])
    begins = np.zeros_like(real)
    for row, sizes in zip(begins, lengths):
        row[np.cumsum([0, *sizes])[:-1]] = True
    weights = rng.normal(size=(TAGS, TAGS)), rng.normal(size=TAGS), rng.normal(size=TAGS)
    weights = tuple(x.astype(np.float32) for x in weights)
    scores = rng.normal(size=(3, 7, TAGS)).astype(np.float32)
    return lengths, scores, rng.integers(0, TAGS, (3, 7)), real, begins, weights


def sequences(lengths, *arrays):
    """Cut each row's arrays into its sequences."""
    for row, sizes in enumerate(lengths):
        edges = np.cumsum([0, *sizes])
        for low, high in itertools.pairwise(edges):
            yield row, low, high, *(x[row, low:high] for x in arrays)


def test_sums_and_paths_are_those_of_every_tagging(case):
    lengths, scores, tags, real, begins, weights = case
    log_z, path = np.zeros(3), np.zeros(3)
    for row, _, _, own, chosen in sequences(lengths, scores, tags):
        log_z[row] += np.logaddexp.reduce(list(every(own, weights).values()))
        path[row] += by_hand(own, weights, chosen)
    np.testing.assert_allclose(log_partition(scores, real, begins, weights), log_z, rtol=1e-5)
    np.testing.assert_allclose(path_score(scores, tags, real, begins, weights), path, rtol=1e-5, atol=1e-6)


def test_the_best_tagging_is_the_best_of_all(case):
    lengths, scores, _, real, begins, weights = case
    found = viterbi(scores, real, begins, weights)
    for row, low, high, own in sequences(lengths, scores):
        every_one = every(own, weights)
        assert tuple(found[row, low:high].tolist()) == max(every_one, key=every_one.get)


def test_the_gradient_of_the_sum_is_the_probability_of_each_tag(case):
    """d logZ / d score[t, j] is p(tag t = j): what forward and backward would find."""
    lengths, scores, _, real, begins, weights = case
    found = jax.grad(lambda s: log_partition(s, real, begins, weights).sum())(jnp.asarray(scores))
    expected = np.zeros_like(scores)
    for row, low, _, own in sequences(lengths, scores):
        every_one = every(own, weights)
        log_z = np.logaddexp.reduce(list(every_one.values()))
        for tags, score in every_one.items():
            for t, tag in enumerate(tags):
                expected[row, low + t, tag] += np.exp(score - log_z)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_bio_forbids_is_never_found():
    names = ("O", "B-X", "I-X", "B-Y", "I-Y")
    rng = np.random.default_rng(1)
    weights = np.zeros((5, 5), np.float32), np.zeros(5, np.float32), np.zeros(5, np.float32)
    bounded = forbid(weights, names)
    assert (np.asarray(bounded[0]) == FORBIDDEN).sum() == 3 * 2  # I-X after all but B-X and I-X; I-Y the same
    scores = rng.normal(size=(40, 6, 5)).astype(np.float32) + np.array([0, 0, 2, 0, 2], np.float32)
    real, begins = np.ones((40, 6), bool), np.zeros((40, 6), bool)
    begins[:, [0, 3]] = True

    def wrong(found) -> int:
        count = 0
        for row in np.asarray(found):
            for t, tag in enumerate(row):
                before = "O" if t in (0, 3) else names[row[t - 1]]
                count += names[tag][0] == "I" and before[1:] != names[tag][1:]
        return count

    assert wrong(viterbi(scores, real, begins, weights)) > 0
    assert wrong(viterbi(scores, real, begins, bounded)) == 0
