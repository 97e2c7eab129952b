"""Activations against the table, norms, and dropout with one key a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.layers import Embed, Linear, dropout
from lm.models.mlp import ACTIVATIONS
from lm.models.model import Model
from lm.models.norms import Norm
from tests.models.reference import INNER, draw, tiny

# spec.md, A.1: x, exact gelu, tanh gelu
GELU = [
    (-3, -0.00404969, -0.00363739),
    (-1, -0.15865525, -0.15880801),
    (-0.5, -0.15426877, -0.15428599),
    (0.5, 0.34573123, 0.34571401),
    (1, 0.84134475, 0.84119199),
    (3, 2.99595031, 2.99636261),
]


@pytest.mark.parametrize(("x", "exact", "tanh"), GELU)
def test_gelu_table(x, exact, tanh):
    assert float(ACTIVATIONS["gelu"][0](jnp.float32(x))) == pytest.approx(exact, abs=1e-6)
    assert float(ACTIVATIONS["gelu_tanh"][0](jnp.float32(x))) == pytest.approx(tanh, abs=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = np.linspace(-6, 6, 101)
    function, gated = ACTIVATIONS[name]
    np.testing.assert_allclose(function(jnp.asarray(x, jnp.float32)), INNER[name](x), atol=1e-5)
    assert gated == ("glu" in name)


@pytest.mark.parametrize("kind", ["layer", "rms", "rms_one"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm(kind, dtype):
    """Statistics in float32 whatever the input; a mean far from zero does not spoil the variance."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(50 + rng.normal(size=(3, 64)), dtype)
    params = {"scale": rng.normal(size=64).astype(np.float32)}
    if kind == "layer":
        params["bias"] = rng.normal(size=64).astype(np.float32)
    found = Norm(kind=kind, eps=1e-5).apply({"params": params}, x)
    assert found.dtype == x.dtype
    y = np.asarray(x, np.float64)
    y = y - y.mean(-1, keepdims=True) if kind == "layer" else y
    scale = params["scale"] + (kind == "rms_one")
    expected = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * scale + params.get("bias", 0)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=1e-2 if dtype == "bfloat16" else 1e-4, atol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["layer", "rms", "rms_one"])
def test_norm_gradients(kind, bias):
    """The backward pass written by hand against autodiff of the formula, for rows of any rank."""
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 4, 16), "scale": (16,), **({"bias": (16,)} if bias and kind == "layer" else {})}
    args = {name: jnp.asarray(rng.normal(size=shape) + 1, jnp.float32) for name, shape in shapes.items()}
    g = jnp.asarray(rng.normal(size=shapes["x"]), jnp.float32)

    def plain(args):
        x = args["x"] - args["x"].mean(-1, keepdims=True) if kind == "layer" else args["x"]
        y = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-2) * (args["scale"] + (kind == "rms_one"))
        return jnp.sum(g * (y + args.get("bias", 0)))

    def ours(args):
        params = {name: value for name, value in args.items() if name != "x"}
        return jnp.sum(g * Norm(kind=kind, eps=1e-2, bias=bias).apply({"params": params}, args["x"]))

    expected, found = jax.grad(plain)(args), jax.grad(ours)(args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, found)
    half = jax.grad(ours)({**args, "x": args["x"].astype(jnp.bfloat16)})
    assert {name: value.dtype.name for name, value in half.items()} == {
        name: "bfloat16" if name == "x" else "float32" for name in args
    }


@pytest.mark.parametrize(("kind", "start"), [("rms", 1), ("rms_one", 0)])
def test_rms_norm_has_no_bias_and_begins_plain(kind, start):
    params = Norm(kind=kind).init(jax.random.key(0), jnp.ones((2, 4)))["params"]
    assert set(params) == {"scale"}
    np.testing.assert_array_equal(params["scale"].value, start)


def test_linear_contracts_leading_axes():
    rng = np.random.default_rng(0)
    kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((3, 4, 5), (5,)))
    x = rng.normal(size=(2, 7, 3, 4)).astype(np.float32)
    layer = Linear((3, 4, 5), ("heads", "head", "embed"), inputs=2)
    found = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(found, np.einsum("btnh,nhd->btd", x, kernel) + bias, rtol=1e-5, atol=1e-5)
    named = layer.init(jax.random.key(0), x)["params"]
    assert (named["kernel"].axes, named["bias"].axes) == (("heads", "head", "embed"), ("embed",))


def test_parameters_stay_float32():
    layer = Linear((4, 5), ("embed", "mlp"))
    x = jnp.ones((2, 4), jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert layer.apply(params, x).dtype == jnp.bfloat16


def test_embed_reads_rows():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = Embed(4, 3).apply({"params": {"table": table}}, np.array([[3, 0]]), jnp.float32)
    np.testing.assert_array_equal(found, table[[[3, 0]]])


# -- dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_rate(rate):
    x = jnp.ones((16, 64, 64))
    y = np.asarray(dropout(x, rate, jax.random.split(jax.random.key(0), 16), 0))
    zeros = (y == 0).mean((1, 2))
    sigma = np.sqrt(rate * (1 - rate) / 64**2)
    assert np.abs(zeros - rate).max() < 4.5 * sigma
    assert abs(zeros.mean() - rate) < 4.5 * sigma / 4
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_no_keys_or_no_rate_is_the_identity():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.5, None, 0) is x
    assert dropout(x, 0.0, jax.random.split(jax.random.key(0), 2), 0) is x


def test_sites_and_rows_differ():
    x, keys = jnp.ones((2, 1000)), jax.random.split(jax.random.key(0), 2)
    first, second = dropout(x, 0.5, keys, 0), dropout(x, 0.5, keys, 1)
    for a, b in ((first, second), (first[0], first[1])):
        assert 0.4 < float((a == b).mean()) < 0.6


@pytest.mark.parametrize("last", [1, 7, 64])
def test_halves_of_one_word_are_drawn_apart(last):
    kept = np.asarray(dropout(jnp.ones((2000, last)), 0.5, jax.random.split(jax.random.key(2), 2000), 0)) > 0
    assert kept.shape == (2000, last)
    apart = np.corrcoef(kept.T).reshape(last, last) - np.eye(last)
    assert np.abs(apart).max() < 4.5 / np.sqrt(2000)


def test_mask_of_a_row_is_its_own():
    x, keys = jnp.ones((5, 100)), jax.random.split(jax.random.key(1), 5)
    whole = dropout(x, 0.3, keys, 2)
    np.testing.assert_array_equal(whole[3:4], dropout(x[3:4], 0.3, keys[3:4], 2))


@pytest.fixture(scope="module")
def model():
    """A stack with every dropout on, as a function of (tokens, keys)."""
    config = tiny(dropout=0.3, attention_dropout=0.3)
    params = draw(config)
    return jax.jit(lambda tokens, keys: Model(config).apply({"params": params}, tokens, keys_B=keys)[0])


TOKENS = np.random.default_rng(0).integers(0, 29, (4, 16), dtype=np.int32)


def test_a_row_of_the_model_is_its_own(model):
    keys = jax.random.split(jax.random.key(0), 4)
    others = np.where(np.arange(4)[:, None] == 2, TOKENS, (TOKENS + 1) % 29)
    other_keys = jnp.where(np.arange(4) == 2, keys, jax.random.split(jax.random.key(9), 4))
    first, second = model(TOKENS, keys), model(others, other_keys)
    np.testing.assert_array_equal(first[2], second[2])
    assert (np.abs(first - second).max((1, 2)) > 0.1).tolist() == [True, True, False, True]


def test_keys_change_the_model_and_none_turns_dropout_off(model):
    keys = jax.random.split(jax.random.key(0), 4)
    plain = model(TOKENS, None)
    np.testing.assert_array_equal(plain, model(TOKENS, None))
    assert np.abs(model(TOKENS, keys) - plain).max() > 0.1
    config = tiny()
    np.testing.assert_allclose(plain, Model(config).apply({"params": draw(config)}, TOKENS)[0], atol=1e-5)


@pytest.mark.parametrize("change", [{"dropout": 0.5}, {"attention_dropout": 0.5}], ids=str)
def test_each_rate_acts_alone(change):
    config = tiny(**change, depth=1)
    params = draw(config)
    run = jax.jit(lambda keys: Model(config).apply({"params": params}, TOKENS, keys_B=keys)[0])
    noisy, plain = run(jax.random.split(jax.random.key(0), 4)), run(None)
    assert np.abs(noisy - plain).max() > 0.1


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("apart", ["layers", "branches"])
def test_every_sum_is_dropped_on_its_own(apart, parallel):
    """Two terms of the stream, 1 and 100 before dropout: were their masks the same, only 0 and 202 would be seen."""
    config = tiny(dropout=0.5, positions="none", parallel=parallel)
    zero = jax.tree.map(np.zeros_like, draw(config))
    layers = zero["stack"]["layers"]
    zero["stack"]["norm"]["scale"] += 1
    if apart == "layers":
        layers["mlp"]["down"]["bias"] += np.array([[1], [100]], np.float32)
    else:
        layers["attention"]["out"]["bias"][0] += 1
        layers["mlp"]["down"]["bias"][0] += 100
    h = Model(config).apply({"params": zero}, TOKENS, keys_B=jax.random.split(jax.random.key(0), 4))[0]
    assert len(np.unique(np.asarray(h[0, 0]).round(4))) == 4
