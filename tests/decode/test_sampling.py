"""The rules for the next token: the reference vectors of spec.md A.8, edge cases, and the distribution drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from lm.decode.sampling import Sampling, argmax, log_probability, temperature, top_k, top_p
from lm.errors import UserError

SCORES = jnp.array([2, 1, 0.5, -1, -2])


def kept(scores):
    return set(np.flatnonzero(np.isfinite(scores)).tolist())


def test_temperature():
    assert temperature(SCORES, 2.0).tolist() == [1, 0.5, 0.25, -0.5, -1]


@pytest.mark.parametrize(("count", "tokens"), [(1, {0}), (2, {0, 1}), (4, {0, 1, 2, 3}), (5, {0, 1, 2, 3, 4})])
def test_top_k(count, tokens):
    assert kept(top_k(SCORES, count)) == tokens


@pytest.mark.parametrize(
    ("mass", "tokens"),
    [(1e-6, {0}), (0.5, {0}), (0.60, {0}), (0.62, {0, 1}), (0.85, {0, 1, 2}), (0.9, {0, 1, 2}), (0.999, {*range(5)})],
)
def test_top_p(mass, tokens):
    assert kept(top_p(SCORES, mass)) == tokens


def test_kept_scores_are_as_they_were_and_ties_are_kept():
    assert top_k(jnp.array([1.0, 3, 1, -jnp.inf]), 2).tolist() == [1, 3, 1, -jnp.inf]
    assert kept(top_p(jnp.zeros(4), 0.3)) == {0, 1, 2, 3}


def test_top_p_after_top_k_counts_what_is_left():
    sampling = Sampling(top_k=2, top_p=0.72)  # .6027 / (.6027 + .2217) = .731
    assert kept(sampling.process(SCORES)) == {0}


def test_rows_are_filtered_each_by_itself():
    rows = jax.random.normal(jax.random.key(0), (4, 3000)) * 3
    for i in range(4):
        np.testing.assert_array_equal(top_k(rows, 40)[i], top_k(rows[i], 40))
        order = np.argsort(-np.asarray(rows[i]))
        mass = np.cumsum(np.asarray(jax.nn.softmax(rows[i]))[order])
        assert kept(top_p(rows, 0.9)[i]) == set(order[: 1 + np.searchsorted(mass, 0.9)].tolist())
        assert len(kept(top_k(rows, 40)[i])) == 40


def test_argmax_takes_the_first_of_several():
    assert argmax(jnp.array([[1.0, 5, 5, 2], [-jnp.inf, -1, -2, -1]])).tolist() == [1, 1]


def test_log_probability_is_the_log_softmax():
    logits = jax.random.normal(jax.random.key(1), (3, 700)) * 4
    tokens = jnp.array([0, 5, 699])
    expected = jax.nn.log_softmax(logits)[jnp.arange(3), tokens]
    np.testing.assert_allclose(log_probability(logits, tokens), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, top_k=8), Sampling(temperature=1.5, top_p=0.8)]
)
def test_draws_follow_the_distribution(sampling):
    draws, size = 30_000, 12
    logits = jax.random.normal(jax.random.key(2), (size,)) * 1.5
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(draws))
    tokens = jax.jit(sampling.choose)(jnp.broadcast_to(logits, (draws, size)), keys)
    counts = np.bincount(np.asarray(tokens), minlength=size)
    # The expected probabilities the plain way: sort, cut, normalise.
    order = np.argsort(-np.asarray(logits))
    p = np.exp(np.asarray(logits, np.float64)[order] / sampling.temperature)
    p /= p.sum()
    n = sampling.top_k or size
    n = n if sampling.top_p == 1 else 1 + int(np.searchsorted(np.cumsum(p), sampling.top_p))
    assert counts[order[n:]].sum() == 0
    assert chisquare(counts[order[:n]], draws * p[:n] / p[:n].sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"temperature": 0.0}, "greedy"), ({"temperature": float("nan")}, "positive"), ({"top_p": 0.0}, "(0, 1]"),
     ({"top_p": 1.5}, "(0, 1]"), ({"top_k": -1}, "top_k"), ({"strategy": "gredy"}, "did you mean 'greedy'")],
)  # fmt: skip
def test_wrong_values_are_refused(wrong, words):
    with pytest.raises(UserError) as error:
        Sampling(**wrong)
    assert words in str(error.value)
