"""d hidden[t] / d input[s] is exactly 0 where the mask forbids, and not 0 where it allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import attention
from lm.models.attention import Mask
from lm.models.transformer import Stack, Transformer
from tests.models.reference import documents, draw, tiny, visible

LENGTH = 12
SEGMENTS, POSITIONS = documents(4, 1, 5, length=LENGTH)


def influence(config: Transformer, length: int, segments=None, causal=True, keys_B=None, positions=None) -> np.ndarray:
    """|d hidden[t] / d input[s]|, (T, S), summed over the width of the input for one random direction of the output."""
    params = jax.tree.map(jnp.asarray, draw(config)["stack"])
    rng = np.random.default_rng(0)
    x, direction = (jnp.asarray(rng.normal(size=(length, config.width)), jnp.float32) for _ in range(2))
    positions = jnp.arange(length) if positions is None else jnp.asarray(positions)
    segments = None if segments is None else jnp.asarray(segments)[None]

    def outputs(x):
        mask = Mask(segments_BT=segments, segments_BS=segments, causal=causal)
        h, _ = Stack(config).apply({"params": params}, x[None], positions[None], mask, keys_B)
        return (h[0] * direction).sum(-1)

    return np.asarray(jnp.abs(jax.jit(jax.jacrev(outputs))(x)).sum(-1))


def check(found: np.ndarray, allowed: np.ndarray) -> None:
    assert np.isfinite(found).all()
    assert (found[~allowed] == 0).all(), np.argwhere((found != 0) & ~allowed)
    assert (found[allowed] > 0).all(), np.argwhere((found == 0) & allowed)


VARIANTS = {
    "plain": {},
    "rotary, grouped": {"positions": "rotary", "heads": 4, "kv_heads": 2, "head": 6},
    "alibi": {"positions": "alibi"},
    "bucket": {"positions": "bucket"},
    "parallel": {"parallel": True},
    "post": {"placement": "post"},
    "capped, normed": {"attention_cap": 2.0, "qk_norm": True},
    "remat full": {"remat": "full"},
    "remat dots, unrolled": {"remat": "dots", "unroll": 0},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_causal(name):
    check(influence(tiny(**VARIANTS[name]), LENGTH), visible(LENGTH))


@pytest.mark.parametrize(
    ("name", "blocks"), [*((name, True) for name in VARIANTS), ("plain", False), ("bucket", False)]
)
def test_packed(name, blocks, monkeypatch):
    """Three documents and padding, in one block of queries and in three."""
    if blocks:
        monkeypatch.setattr(attention, "BLOCK", 4)
    found = influence(tiny(**VARIANTS[name]), LENGTH, SEGMENTS, positions=POSITIONS)
    real = SEGMENTS > 0
    allowed = visible(LENGTH, segments=SEGMENTS)
    check(found[real], allowed[real])  # what padding sees is nobody's business


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("windows", [(3,), (2, 0), (4, 2)])
def test_windows(windows, blocks, monkeypatch):
    """Through two layers the windows add up: one step of each relation after the other."""
    if blocks:
        monkeypatch.setattr(attention, "BLOCK", 4)
    first, second = (visible(LENGTH, window=windows[i % len(windows)]) for i in range(2))
    reached = (first.astype(int) @ second.astype(int)) > 0
    check(influence(tiny(windows=windows), LENGTH), reached)
    assert reached.sum() < visible(LENGTH).sum() or 0 in windows


def test_bidirectional():
    check(influence(tiny(), LENGTH, causal=False), visible(LENGTH, causal=False))


@pytest.mark.parametrize("positions", ["none", "bucket", "alibi"])
def test_bidirectional_packed(positions):
    found = influence(tiny(positions=positions), LENGTH, SEGMENTS, causal=False, positions=POSITIONS)
    real = SEGMENTS > 0
    check(found[real], visible(LENGTH, causal=False, segments=SEGMENTS)[real])


def test_bidirectional_window():
    allowed = visible(LENGTH, causal=False, window=3)
    check(influence(tiny(windows=(3,), depth=1), LENGTH, causal=False), allowed)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_dropout(remat):
    """Dropped entries may be 0 where the mask allows, never the other way round."""
    config = tiny(dropout=0.3, attention_dropout=0.3, remat=remat)
    found = influence(config, LENGTH, SEGMENTS, keys_B=jax.random.split(jax.random.key(0), 1), positions=POSITIONS)
    allowed, real = visible(LENGTH, segments=SEGMENTS), SEGMENTS > 0
    assert (found[real][~allowed[real]] == 0).all()
    assert (found[real][allowed[real]] > 0).mean() > 0.8


def test_prefix():
    """The first tokens are seen by all, the rest only from behind."""
    config = tiny(depth=1)
    params, length = draw(config)["stack"], LENGTH
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, length, config.width)), jnp.float32)
    prefixes = jnp.array([5, 0])

    def outputs(x):
        h, _ = Stack(config).apply({"params": params}, x, jnp.zeros((2, length), jnp.int32), Mask(prefix_B=prefixes))
        return h.sum(-1) + (h**2).sum(-1) + h[..., 0]

    found = np.asarray(jnp.abs(jax.jit(jax.jacrev(outputs))(x)).sum(-1))
    for row, prefix in enumerate([5, 0]):
        check(found[row, :, row], visible(length) | (np.arange(length) < prefix))
    assert (found[0, :, 1] == 0).all()


def test_real_blocks():
    """Two blocks of the real size, with documents across their border."""
    length = 2 * attention.BLOCK
    segments, positions = documents(100, 60, 70, length=length)
    config = tiny(depth=1, context=length)
    found = influence(config, length, segments, positions=positions)
    real = segments > 0
    allowed = visible(length, segments=segments)
    assert (found[real][~allowed[real]] == 0).all()
    assert (found[real][allowed[real]] > 0).mean() > 0.999  # a few underflow to 0
