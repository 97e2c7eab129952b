"""Cross-entropy in chunks: value and gradients of the plain formula, and never all logits at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy.special import logsumexp

from lm.models import heads
from lm.models.heads import Head, cross_entropy
from lm.objectives.causal import Causal
from tests.models.reference import draw, tiny

ROWS, LENGTH, WIDTH, VOCAB = 3, 8, 6, 37


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    table = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    targets = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    weights = (rng.random((ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.7)).astype(np.float32)
    return h, table, targets, weights


def plain(h, table, targets, weights, vocab, scale=1.0, cap=0.0, z_loss=0.0):
    """Value, sums and both gradients in float64, by the formula p - one_hot."""
    h, table, weights = (np.asarray(x, np.float64) for x in (h, table, weights))
    raw = scale * (h @ table[:vocab].T)
    logits = cap * np.tanh(raw / cap) if cap else raw
    log_z = logsumexp(logits, -1)
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    nll, z = (weights * (log_z - chosen)).sum(), (weights * log_z**2).sum()
    hits = (weights * (logits.argmax(-1) == targets)).sum()
    p = np.exp(logits - log_z[..., None])
    d_logits = weights[..., None] * (p * (1 + 2 * z_loss * log_z[..., None]) - np.eye(vocab)[targets])
    d_raw = d_logits * (1 - np.tanh(raw / cap) ** 2 if cap else 1.0) * scale
    d_table = np.zeros_like(table)
    d_table[:vocab] = np.einsum("btv,btd->vd", d_raw, h)
    return {"total": nll + z_loss * z, "nll": nll, "z": z, "hits": hits}, (d_raw @ table[:vocab], d_table)


def ours(h, table, targets, weights, vocab, scale=1.0, cap=0.0, z_loss=0.0, chunk=0):
    def total(h, table):
        head = Head(table_VD=table, vocab=vocab, scale=scale, cap=cap)
        sums = cross_entropy(h, head, targets, weights, z_loss=z_loss, chunk=chunk)
        return sums["total"], sums

    (_, sums), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(h, table)
    return sums, grads


def compare(found, expected, rtol=2e-5):
    sums, grads = found
    for name, value in expected[0].items():
        assert float(sums[name]) == pytest.approx(value, rel=rtol), name
    for mine, theirs in zip(grads, expected[1]):
        np.testing.assert_allclose(np.asarray(mine, np.float64), theirs, atol=rtol * np.abs(theirs).max())


@pytest.mark.parametrize("chunk", [0, 1, 5, 7, 8, 24, 1000])
def test_chunks(arrays, chunk):
    compare(ours(*arrays, VOCAB, chunk=chunk), plain(*arrays, VOCAB))


@pytest.mark.parametrize(
    "options",
    [
        {"z_loss": 0.1},
        {"cap": 1.5},
        {"scale": 0.25},
        {"vocab": 31},
        {"vocab": 31, "cap": 1.5, "scale": 2.0, "z_loss": 1e-2, "chunk": 6},
    ],
    ids=str,
)
def test_options(arrays, options):
    options = {"vocab": VOCAB, "chunk": 4, **options}
    h, table, targets, weights = arrays
    targets = np.minimum(targets, options["vocab"] - 1)
    expected = plain(h, table, targets, weights, **{k: v for k, v in options.items() if k != "chunk"})
    found = ours(h, table, targets, weights, **options)
    compare(found, expected)
    assert (np.asarray(found[1][1])[options["vocab"] :] == 0).all()


def test_value_without_gradient_is_the_same(arrays):
    h, table, targets, weights = arrays
    head = Head(table_VD=jnp.asarray(table), vocab=VOCAB)
    sums = jax.jit(lambda: cross_entropy(jnp.asarray(h), head, targets, weights, z_loss=0.1, chunk=6))()
    for name, value in plain(*arrays, VOCAB, z_loss=0.1)[0].items():
        assert float(sums[name]) == pytest.approx(value, rel=2e-5)


def test_tokens_of_no_weight_do_not_count(arrays):
    h, table, targets, weights = arrays
    other = np.where(weights == 0, (targets + 1) % VOCAB, targets).astype(np.int32)
    first, second = ours(*arrays, VOCAB), ours(h, table, other, weights, VOCAB)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert (np.asarray(first[1][0])[weights == 0] == 0).all()
    nothing = ours(h, table, targets, np.zeros_like(weights), VOCAB)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(nothing))


def test_large_logits_stay_finite(arrays):
    h, table, targets, weights = arrays
    found = ours(1e3 * h, table, targets, weights, VOCAB)
    compare(found, plain(1e3 * h, table, targets, weights, VOCAB), rtol=1e-4)


def test_bfloat16_hidden(arrays):
    """Products in bfloat16 accumulated in float32; sums and the table's gradient in float32."""
    h, table, targets, weights = arrays
    h = jnp.asarray(h, jnp.bfloat16)
    rounded = np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32)
    sums, (d_h, d_table) = ours(h, table, targets, weights, VOCAB, chunk=4)
    assert (sums["total"].dtype, d_h.dtype, d_table.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    expected, (e_h, e_table) = plain(np.asarray(h, np.float32), rounded, targets, weights, VOCAB)
    assert float(sums["total"]) == pytest.approx(expected["total"], rel=1e-4)
    np.testing.assert_allclose(np.asarray(d_h, np.float32), e_h, atol=0.02 * np.abs(e_h).max())
    np.testing.assert_allclose(d_table, e_table, atol=0.02 * np.abs(e_table).max())


def test_gradient_scales_with_its_cotangent(arrays):
    h, table, targets, weights = arrays

    def total(h, table, factor):
        return factor * cross_entropy(h, Head(table_VD=table, vocab=VOCAB), targets, weights)["total"]

    one, three = (jax.jit(jax.grad(total, (0, 1)))(h, table, factor) for factor in (1.0, 3.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-5, atol=1e-6), one, three)
    metric = jax.grad(lambda h: cross_entropy(h, Head(table_VD=table, vocab=VOCAB), targets, weights)["nll"])(h)
    assert (np.asarray(metric) == 0).all()  # documented: only the total has a gradient


def largest(text: str) -> int:
    """Elements of the largest array of a compiled program."""
    shapes = re.findall(r"\b(?:f32|f16|bf16|s32|u32|pred)\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_all_logits_never_exist():
    rows, length, width, vocab, chunk = 4, 64, 8, 1000, 16
    h = jnp.zeros((rows, length, width))
    table, targets, weights = jnp.zeros((vocab, width)), jnp.zeros((rows, length), jnp.int32), jnp.ones((rows, length))

    def compiled(loss):
        return jax.jit(jax.grad(loss, (0, 1))).lower(h, table).compile().as_text()

    fused = compiled(lambda h, t: cross_entropy(h, Head(table_VD=t, vocab=vocab), targets, weights, chunk=chunk)["total"])
    whole = compiled(lambda h, t: -jnp.sum(weights * jax.nn.log_softmax(h @ t.T)[..., 0]))
    assert largest(whole) >= rows * length * vocab
    assert largest(fused) <= max(chunk * vocab, vocab * width)


def test_all_logits_never_exist_in_a_training_step():
    objective = Causal(model=tiny(vocab=5000, context=32, tied=False), chunk=16)
    shape = (4, 32)
    batch = {name: np.ones(shape, np.int32) for name in ("tokens", "targets", "segments", "positions")}
    batch["weights"] = np.ones(shape, np.float32)
    params = draw(objective.model)
    text = jax.jit(jax.grad(lambda p: objective.loss(p, batch, None, None)[0]["loss"][0])).lower(params).compile().as_text()
    assert largest(text) <= 16 * 5000


def test_default_chunk_keeps_logits_small():
    """About 16 MiB of float32 logits, whatever the vocabulary."""
    shape = (64, 256)
    for vocab in (50_257, 256):
        args = jax.ShapeDtypeStruct((*shape, 4), jnp.float32), jax.ShapeDtypeStruct((vocab, 4), jnp.float32)
        ones = np.ones(shape)

        def loss(h, t):
            return cross_entropy(h, Head(table_VD=t, vocab=t.shape[0]), ones.astype(np.int32), ones)["total"]  # noqa: B023

        sizes = [v.aval.size for e in equations(jax.make_jaxpr(loss)(*args).jaxpr) for v in e.outvars]
        assert max(sizes) <= 2**22 + 64 * 256 * 4


@pytest.mark.parametrize("tokens", [101, 2 * 101])
def test_awkward_numbers_of_tokens_still_go_in_chunks(tokens):
    """A prime number of tokens (a text to score, a last batch) is no reason for a loop over single tokens."""
    table, ones = jnp.ones((VOCAB, WIDTH)), np.ones((1, tokens))

    def loss(h):
        return cross_entropy(h, Head(table_VD=table, vocab=VOCAB), ones.astype(np.int32), ones, chunk=16)["total"]

    lengths = [
        e.params["length"]
        for e in equations(jax.make_jaxpr(loss)(jnp.ones((1, tokens, WIDTH))).jaxpr)
        if e.primitive.name == "scan"
    ]
    assert lengths
    assert max(lengths) <= 2 * -(-tokens // 16)


def equations(jaxpr):
    """Every operation of a program, those inside loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize(("kind", "rows", "tokens"), [("cpu", 2**16, 64), ("tpu", 2**16, 1024), ("gpu", 2**10, 2**16)])
def test_chunks_fit_the_device(monkeypatch, kind, rows, tokens):
    monkeypatch.setattr(heads, "platform", lambda: kind)
    assert heads.chunk_tokens(rows) == tokens
