"""The rules for the next token: the reference vectors of spec.md A.8, edge cases, and the distribution drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import logits_process as theirs

from lm.decode.sampling import (
    Sampling,
    argmax,
    epsilon,
    eta,
    log_probability,
    min_p,
    temperature,
    top_k,
    top_p,
    typical,
)
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


@pytest.mark.parametrize(
    ("rule", "value", "tokens"),
    [(min_p, 0.1, {0, 1, 2}), (min_p, 0.3, {0, 1}), (typical, 0.2, {1}), (typical, 0.5, {0, 1}),
     (typical, 0.9, {0, 1, 2}), (eta, 0.1, {0, 1, 2}), (epsilon, 0.1, {0, 1, 2}), (epsilon, 0.9, {0}),
     (min_p, 1.0, {0})],
)  # fmt: skip
def test_cuts_by_probability(rule, value, tokens):
    assert kept(rule(SCORES, value)) == tokens


WARPERS = {
    "temperature": theirs.TemperatureLogitsWarper,
    "top_k": theirs.TopKLogitsWarper,
    "top_p": theirs.TopPLogitsWarper,
    "min_p": theirs.MinPLogitsWarper,
    "typical_p": theirs.TypicalLogitsWarper,
    "epsilon": theirs.EpsilonLogitsWarper,
    "eta": theirs.EtaLogitsWarper,
}
COMBINATIONS = [
    {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"typical_p": 0.7}, {"epsilon": 0.02},
    {"eta": 0.05}, {"temperature": 1.5, "top_k": 8, "top_p": 0.9}, {"temperature": 0.8, "min_p": 0.1},
    {"top_k": 9, "typical_p": 0.9}, {"top_p": 0.95, "epsilon": 0.05}, {"typical_p": 0.95, "eta": 0.08},
    {"temperature": 1.3, "top_k": 10, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.95, "epsilon": 0.01, "eta": 0.01},
]  # fmt: skip
NAMES = ["+".join(values) for values in COMBINATIONS]


def reference(values, scores):
    """Scores after Hugging Face's warpers, which are given in its order."""
    scores = torch.tensor(np.array(scores))
    for name, value in values.items():
        scores = WARPERS[name](value)(None, scores)
    return scores.numpy()


@pytest.mark.parametrize("values", COMBINATIONS, ids=NAMES)
def test_as_transformers(values):
    rows = np.random.default_rng(5).normal(0, 2, (200, 50)).astype(np.float32)
    rows[::3, ::7] = -np.inf  # banned by a rule before
    found = jax.jit(Sampling(**values).process)(rows)
    np.testing.assert_allclose(found, reference(values, rows), rtol=1e-6)


def test_a_large_vocabulary_as_transformers():
    # Of these rows no token stands within rounding of a threshold; of others either is right, and processors differ.
    rows = np.random.default_rng(14).normal(0, 3, (4, 50_257)).astype(np.float32)
    for values in ({"typical_p": 0.9}, {"eta": 1e-3}, {"epsilon": 1e-3}, {"min_p": 0.01}):
        np.testing.assert_allclose(jax.jit(Sampling(**values).process)(rows), reference(values, rows), rtol=1e-6)


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


@pytest.mark.parametrize("values", [{}, *COMBINATIONS], ids=["plain", *NAMES])
def test_draws_follow_the_distribution(values):
    draws, size = 100_000, 12
    logits = jax.random.normal(jax.random.key(2), (size,)) * 1.5
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(draws))
    choose = Sampling(**values).choose
    tokens = jax.jit(jax.vmap(lambda key: choose(logits[None], key[None])[0]))(keys)  # the cut is made once
    counts = np.bincount(np.asarray(tokens), minlength=size)
    expected = torch.tensor(reference(values, logits[None])[0]).double().softmax(-1).numpy()
    assert counts[expected == 0].sum() == 0
    if (expected > 0).sum() > 1:
        assert chisquare(counts[expected > 0], draws * expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"temperature": 0.0}, "greedy"), ({"temperature": float("nan")}, "positive"), ({"top_p": 0.0}, "(0, 1]"),
     ({"top_p": 1.5}, "(0, 1]"), ({"top_k": -1}, "top_k"), ({"typical_p": 0.0}, "typical_p"),
     ({"min_p": 1.1}, "min_p"), ({"eta": 1.0}, "eta"), ({"epsilon": -0.1}, "epsilon"),
     ({"strategy": "gredy"}, "did you mean 'greedy'")],
)  # fmt: skip
def test_wrong_values_are_refused(wrong, words):
    with pytest.raises(UserError) as error:
        Sampling(**wrong)
    assert words in str(error.value)
