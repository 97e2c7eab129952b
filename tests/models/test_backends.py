"""Every implementation of attention against the direct one: values and gradients of every mask that it can hold."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.models import blockwise as blocks
from lm.models.attend import Bias, Call, Mask, attend
from lm.models.backends import BACKENDS, run
from lm.models.kernels import run_splash
from lm.models.positions import alibi_slopes
from lm.models.transformer import Transformer

BATCH, HEADS, LENGTH, HEAD = 2, 4, 48, 8


def drawn(length=LENGTH, keys=None, heads=HEADS, kv=HEADS, head=HEAD):
    """Queries, keys, values and a direction for the gradient."""
    keys = keys or length
    rng = np.random.default_rng(0)
    shapes = (heads, length), (kv, keys), (kv, keys), (heads, length)
    return [jnp.asarray(rng.normal(size=(BATCH, *shape, head)).astype(np.float32)) for shape in shapes]


def documents(length=LENGTH, padding=5):
    """Two documents a row, of other lengths in each, and padding."""
    found = np.zeros((BATCH, length), np.int32)
    for row, border in enumerate((length // 3, length // 2)):
        found[row, : length - padding] = 1 + (np.arange(length - padding) >= border)
    return jnp.asarray(found)


def table_bias(distances_TS, table_RN):
    return table_RN[jnp.clip(distances_TS + 16, 0, 31)].transpose(2, 0, 1)


def both(name, call, direction, table=None):
    """Return (values, gradients) by a backend and by the direct one, at queries that see something."""
    real = jnp.ones((BATCH, call.lengths[0]), bool) if call.mask.segments_BT is None else call.mask.segments_BT > 0
    direction = direction * real[:, None, :, None]

    def value(run, q, k, v, table):
        bias = call.bias if table is None else Bias(table_bias, (table,))
        return (run(dataclasses.replace(call, queries=q, keys=k, values=v, bias=bias)) * direction).sum()

    found = []
    for backend in (BACKENDS[name].run if isinstance(name, str) else name, attend):
        gradients = (0, 1, 2) if table is None else (0, 1, 2, 3)
        function = jax.jit(jax.value_and_grad(partial(value, backend), gradients))
        found.append(function(call.queries, call.keys, call.values, table))
    return found


def compare(found, tolerance=2e-5):
    (mine, my_grads), (theirs, their_grads) = found
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-3)
    for a, b in zip(jax.tree.leaves(my_grads), jax.tree.leaves(their_grads), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, float(jnp.abs(b).max())))


CASES = {
    "causal": {},
    "full": {"causal": False},
    "packed causal": {"segments": True},
    "packed full": {"segments": True, "causal": False},
    "window": {"window": 7},
    "packed full window": {"segments": True, "causal": False, "window": 7},
    "prefix": {"prefix": True, "segments": True},
    "cap": {"cap": 2.0},
    "grouped": {"kv": 2},
    "table": {"table": True},
    "slopes, cross": {"keys": 30, "causal": False, "slopes": True},
    "odd": {"length": 53, "segments": True},
}


@pytest.mark.parametrize("name", CASES)
def test_blockwise_is_direct(monkeypatch, name):
    """Blocks of 16 over rows of 48, 53 (padded) and 30 tokens."""
    monkeypatch.setattr(blocks, "BLOCK", 16)
    case = CASES[name]
    length = case.get("length", LENGTH)
    q, k, v, direction = drawn(length, case.get("keys"), kv=case.get("kv", HEADS))
    segments = documents(length) if case.get("segments") else None
    prefix = jnp.arange(length)[None] < jnp.asarray([[9], [20]]) if case.get("prefix") else None
    window = jnp.asarray(case["window"]) if "window" in case else None
    mask = Mask(segments_BT=segments, segments_BS=segments, window=window, prefix_BS=prefix, causal=case.get("causal", True))
    slopes = alibi_slopes(HEADS)[:, None, None]
    bias = Bias(lambda d: jnp.abs(d) * -slopes) if case.get("slopes") else None
    table = jax.random.normal(jax.random.key(1), (32, HEADS)) if case.get("table") else None
    compare(both("blockwise", Call(q, k, v, mask, bias=bias, cap=case.get("cap", 0.0)), direction, table))


def test_dropout_of_blocks(monkeypatch):
    """The mask does not depend on the size of the blocks, hits its rate, and has the gradient of what it computed."""
    q, k, v, direction = drawn(heads=2, kv=2)
    call = Call(q, k, v, Mask(causal=False), keys_B=jax.random.split(jax.random.key(3), BATCH), rate=0.3)

    def results(block):
        monkeypatch.setattr(blocks, "BLOCK", block)
        return jax.value_and_grad(lambda v: (BACKENDS["blockwise"].run(dataclasses.replace(call, values=v)) * direction).sum())(
            v
        )

    (a, da), (b, db) = results(12), results(48)
    np.testing.assert_allclose(a, b, rtol=1e-4)
    np.testing.assert_allclose(da, db, atol=1e-4)
    # Linear in the values: the gradient's product with them is the value itself.
    np.testing.assert_allclose((da * v).sum(), a, rtol=1e-4)
    # With equal scores and values of one, a query's result is its share of kept keys over 1 - rate.
    flat = dataclasses.replace(call, queries=0 * q, values=jnp.ones_like(v))
    kept = np.asarray(BACKENDS["blockwise"].run(flat))[..., 0] * 0.7
    assert abs(kept.mean() - 0.7) < 0.02
    assert len(np.unique(np.round(kept * 48).astype(int))) > 5  # queries differ


@pytest.mark.parametrize(
    "case", [{}, {"segments": True}, {"kv": 2, "window": 100}, {"causal": False, "segments": True}], ids=str
)
def test_splash_is_direct(case):
    """The TPU kernel in interpret mode, with grouped heads and with one window of two chosen at run time."""
    length = 256
    q, k, v, direction = drawn(length, kv=case.get("kv", HEADS), head=128)
    segments = documents(length, 0) if case.get("segments") else None
    window = jnp.asarray(case["window"]) if "window" in case else None
    mask = Mask(segments_BT=segments, segments_BS=segments, window=window, causal=case.get("causal", True))
    call = Call(0.1 * q, k, v, mask, windows=(case.get("window", 0), 0))
    compare(both(partial(run_splash, interpret=True), call, direction), 1e-4)


def test_an_unknown_implementation():
    with pytest.raises(UserError, match="attention"):
        Transformer(attention="flash")


def test_what_a_backend_cannot_hold_is_an_error():
    q, k, v, _ = drawn()
    with pytest.raises(UserError, match="splash runs on tpu, not on a cpu"):
        run("splash", Call(q, k, v, Mask()))
    segments = documents()
    needs = Call(q, k, v, Mask(segments_BT=segments, segments_BS=segments), cap=1.0).needs
    assert {"segments", "cap"} <= needs - BACKENDS["cudnn"].holds


def test_long_rows_keep_no_scores():
    """Bytes kept for the backward pass of one layer do not grow with the context; those of the direct one do."""
    slopes = alibi_slopes(HEADS)[:, None, None]

    def kept(length, bias):
        q, k, v = (jax.ShapeDtypeStruct((1, HEADS, length, HEAD), jnp.float32) for _ in range(3))
        bias = Bias(lambda d: jnp.abs(d) * -slopes) if bias else None
        _, pull = jax.eval_shape(lambda q, k, v: jax.vjp(lambda *x: run("auto", Call(*x, Mask(), bias=bias)), q, k, v), q, k, v)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull)) / length

    assert kept(4096, False) == pytest.approx(kept(16384, False), rel=0.02)
    assert kept(4096, True) == pytest.approx(kept(16384, True), rel=0.02)
    assert kept(4096, False) < kept(1024, False)
