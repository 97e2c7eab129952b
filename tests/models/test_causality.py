"""d hidden[t] / d input[s] is exactly 0 where the mask forbids, and not 0 where it allows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import attend
from lm.models.attend import Mask
from lm.models.stack import Stack
from lm.models.transformer import Transformer
from tests.marks import quick
from tests.models.reference import documents, draw, tiny, visible

LENGTH = 12
WHOLE = np.ones(LENGTH, np.int32)
SEGMENTS, POSITIONS = documents(4, 1, 5, length=LENGTH)


@functools.cache
def compiled(config: Transformer, length: int, causal: bool, packed: bool, block: int):
    """Jacobian of every output, in one random direction, by every input; compiled once for all segments."""
    assert block == attend.BLOCK
    rng = np.random.default_rng(0)
    x, direction = (jnp.asarray(rng.normal(size=(length, config.width)), jnp.float32) for _ in range(2))
    params = jax.tree.map(jnp.asarray, draw(config)["stack"])

    @jax.jit
    def run(segments, keys_B):
        def outputs(x):
            row = segments[None] if packed else None
            mask = Mask(segments_BT=row, segments_BS=row, causal=causal)
            h, _, _ = Stack(config).apply({"params": params}, x[None], jnp.arange(length)[None], mask, keys_B)
            return (h[0] * direction).sum(-1)

        return jnp.abs(jax.jacrev(outputs)(x)).sum(-1)

    return run


def influence(config: Transformer, length: int = LENGTH, segments=None, causal=True, keys_B=None) -> np.ndarray:
    """|d hidden[t] / d input[s]|, (T, S), summed over the width of the input."""
    run = compiled(config, length, causal, segments is not None, attend.BLOCK)
    return np.asarray(run(None if segments is None else jnp.asarray(segments), keys_B))


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
    "sandwich": {"placement": "sandwich", "norm": "rms_one"},
    "capped, normed": {"attention_cap": 2.0, "qk_norm": True},
    "remat full": {"remat": "full"},
    "remat dots, unrolled": {"remat": "dots", "unroll": 0},
    "bfloat16": {"dtype": "bfloat16"},
}


def packed(found: np.ndarray, allowed: np.ndarray) -> None:
    real = SEGMENTS > 0  # what padding sees is nobody's business
    check(found[real], allowed[real])


@pytest.mark.parametrize("name", ["plain", "alibi", "remat full"])
def test_one_document(name):
    """No segments given: the whole row, in one block of queries."""
    check(influence(tiny(**VARIANTS[name])), visible(LENGTH))


BLOCKS = [*((name, 4) for name in VARIANTS), ("plain", 128), ("bucket", 128)]


@pytest.mark.parametrize(("name", "block"), quick(BLOCKS, [pair for pair in BLOCKS if pair[0] in ("plain", "bucket")]))
def test_documents(name, block, monkeypatch):
    """A row of one document, and one of three and padding; in three blocks of queries and in one."""
    monkeypatch.setattr(attend, "BLOCK", block)
    config = tiny(**VARIANTS[name])
    check(influence(config, segments=WHOLE), visible(LENGTH))
    packed(influence(config, segments=SEGMENTS), visible(LENGTH, segments=SEGMENTS))


@pytest.mark.parametrize(("windows", "block"), [((3,), 4), ((2, 0), 4), ((4, 2), 4), ((4, 2), 128)])
def test_windows(windows, block, monkeypatch):
    """Through two layers the windows add up: one step of each relation after the other."""
    monkeypatch.setattr(attend, "BLOCK", block)
    first, second = (visible(LENGTH, window=windows[i % len(windows)]) for i in range(2))
    reached = (first.astype(int) @ second.astype(int)) > 0
    check(influence(tiny(windows=windows)), reached)
    assert reached.sum() < visible(LENGTH).sum() or 0 in windows


@pytest.mark.parametrize("positions", ["none", "bucket"])
def test_bidirectional(positions):
    config = tiny(positions=positions)
    check(influence(config, segments=WHOLE, causal=False), visible(LENGTH, causal=False))
    found = influence(config, segments=SEGMENTS, causal=False)
    packed(found, visible(LENGTH, causal=False, segments=SEGMENTS))


def test_bidirectional_window():
    allowed = visible(LENGTH, causal=False, window=3)
    check(influence(tiny(windows=(3,), depth=1), causal=False), allowed)


def test_dropout():
    """Dropped entries may be 0 where the mask allows, never the other way round; through remat, which draws twice."""
    config = tiny(dropout=0.3, attention_dropout=0.3, remat="full")
    found = influence(config, segments=SEGMENTS, keys_B=jax.random.split(jax.random.key(0), 1))
    allowed, real = visible(LENGTH, segments=SEGMENTS), SEGMENTS > 0
    assert (found[real][~allowed[real]] == 0).all()
    assert (found[real][allowed[real]] > 0).mean() > 0.8


def test_prefix():
    """The first tokens are seen by all, the rest only from behind."""
    config = tiny(depth=1)
    params, length = draw(config)["stack"], LENGTH
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, length, config.width)), jnp.float32)
    prefix = jnp.arange(length) < jnp.array([[5], [0]])

    def outputs(x):
        h, _, _ = Stack(config).apply({"params": params}, x, jnp.zeros((2, length), jnp.int32), Mask(prefix_BS=prefix))
        return h.sum(-1) + (h**2).sum(-1) + h[..., 0]

    found = np.asarray(jnp.abs(jax.jit(jax.jacrev(outputs))(x)).sum(-1))
    for row, prefix in enumerate([5, 0]):
        check(found[row, :, row], visible(length) | (np.arange(length) < prefix))
    assert (found[0, :, 1] == 0).all()


def test_real_blocks():
    """Two blocks of the real size, with documents across their border."""
    length = 2 * attend.BLOCK
    segments, _ = documents(100, 60, 70, length=length)
    config = tiny(depth=1, context=length)
    found = influence(config, length, segments)
    real = segments > 0
    allowed = visible(length, segments=segments)
    assert (found[real][~allowed[real]] == 0).all()
    assert (found[real][allowed[real]] > 0).mean() > 0.999  # a few underflow to 0
