"""Softmax times values as it is computed, division last, against the two written one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.attend import kept_weights, masked, seeds, weighted_values

BATCH, HEADS, KV, LENGTH, KEYS, HEAD = 3, 4, 2, 5, 7, 6


def factors(keys_B, rate):
    kept = kept_weights(seeds(keys_B), rate, HEADS, jnp.arange(LENGTH), jnp.arange(KEYS))
    return 1.0 if kept is None else kept


def plain(scores_BNTS, allowed_BTS, v_BKSH, keys_B, rate):
    """Choose, softmax, dropout, product."""
    weights = jax.nn.softmax(jnp.where(allowed_BTS[:, None], scores_BNTS, -1e30), -1)
    v_BNSH = jnp.repeat(v_BKSH, HEADS // KV, 1)
    return jnp.einsum("bnts,bnsh->bnth", weights * factors(keys_B, rate), v_BNSH)


def ours(scores_BNTS, allowed_BTS, v_BKSH, keys_B, rate):
    return weighted_values(masked(scores_BNTS, allowed_BTS), v_BKSH, factors(keys_B, rate) if rate else None)


@pytest.fixture(scope="module")
def drawn():
    """Scores as far apart as 60, masks in which every query sees a key, values, keys of rows."""
    keys = jax.random.split(jax.random.key(0), 4)
    scores = 20 * jax.random.normal(keys[0], (BATCH, HEADS, LENGTH, KEYS))
    allowed = jax.random.bernoulli(keys[1], 0.5, (BATCH, LENGTH, KEYS)).at[:, :, 2].set(True)
    return scores, allowed, jax.random.normal(keys[2], (BATCH, KV, KEYS, HEAD)), jax.random.split(keys[3], BATCH)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_is_softmax_times_values(drawn, rate):
    """Values and gradients, with and without dropout."""
    scores, allowed, v, keys_B = drawn
    toward = jax.random.normal(jax.random.key(9), (BATCH, HEADS, LENGTH, HEAD))

    def along(attend):
        return jax.value_and_grad(lambda s, v: (attend(s, allowed, v, keys_B, rate) * toward).sum(), (0, 1))(scores, v)

    np.testing.assert_allclose(ours(*drawn, rate), plain(*drawn, rate), rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(along(ours)), jax.tree.leaves(along(plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_keys_out_of_sight_do_not_matter(drawn):
    """Not a bit, however large their scores; a query that sees none gets the mean of all values, and all is finite."""
    scores, allowed, v, keys_B = drawn
    allowed = allowed.at[1, 3].set(False)
    hidden = jnp.where(allowed[:, None], scores, 1e4)
    y = ours(scores, allowed, v, keys_B, 0.0)
    np.testing.assert_array_equal(y, ours(hidden, allowed, v, keys_B, 0.0))
    np.testing.assert_allclose(y[1, :, 3], jnp.repeat(v[1].mean(1), HEADS // KV, 0), rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda s: ours(s, allowed, v, keys_B, 0.0).sum())(scores)
    assert np.isfinite(grads).all()
    assert not np.asarray(grads)[np.broadcast_to(~np.asarray(allowed)[:, None], grads.shape) & seen(allowed)].any()


def seen(allowed_BTS):
    """Rows of scores whose query sees something."""
    return np.asarray(allowed_BTS).any(-1)[:, None, :, None]


def test_half_precision_is_near(drawn):
    """Values in bfloat16 give a result in bfloat16, off by roundings."""
    scores, allowed, v, keys_B = drawn
    y = ours(scores, allowed, v.astype(jnp.bfloat16), keys_B, 0.0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), plain(*drawn, 0.0), rtol=2e-2, atol=2e-2)


def test_dropped_weights_are_independent():
    """The rate is met, and equal in every row, head, query and key: means of a binomial, within five standard deviations."""
    kept = np.asarray(kept_weights(seeds(jax.random.split(jax.random.key(7), 8)), 0.1, 8, jnp.arange(64), jnp.arange(64)) > 0)
    for axes in ((0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        count = np.prod([kept.shape[a] for a in axes])
        assert np.abs(kept.mean(axes) - 0.9).max() < 5 * np.sqrt(0.09 / count)
    for a, b in (
        (kept[0], kept[1]),
        (kept[:, 0], kept[:, 1]),
        (kept[:, :, 1:], kept[:, :, :-1]),
        (kept[..., 1:], kept[..., :-1]),
    ):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)
