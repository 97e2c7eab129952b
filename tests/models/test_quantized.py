"""Products in 8 bits against torch's casts and integer products; where they stand in a step; what they cost in loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from lm.errors import UserError
from lm.models.experts import Experts
from lm.models.model import Model
from lm.models.quantized import FORMATS, quantized
from tests.models.test_transformer import draw, ids, loss_and_gradient, products, tiny

DRAW = np.random.default_rng(0)
X, W, G = (DRAW.normal(size=shape).astype(np.float32) for shape in ((2, 12, 32), (32, 16), (2, 12, 16)))


def multiplied(a: np.ndarray, b: np.ndarray, formats: tuple[str, str]) -> np.ndarray:
    """Multiply two matrices, each scaled along what is contracted, in torch's types."""
    parts, scales = [], []
    for x, axis, name in ((a, 1, formats[0]), (b, 0, formats[1])):
        x, largest = torch.from_numpy(x), 127.0 if name == "int8" else torch.finfo(getattr(torch, name)).max
        scale = x.abs().amax(axis, keepdim=True) / largest
        x = (x / scale).round().to(torch.int8).long() if name == "int8" else (x / scale).to(getattr(torch, name)).double()
        parts.append(x)
        scales.append(scale)
    return ((parts[0] @ parts[1]).double() * scales[0] * scales[1]).numpy()


@pytest.mark.parametrize("kind", FORMATS)
def test_products_are_those_of_torch(kind):
    values, gradients = {"int8": ("int8", "int8"), "float8": ("float8_e4m3fn", "float8_e5m2")}[kind]
    y, pull = jax.vjp(lambda x, w: quantized(kind, x, w), jnp.asarray(X), jnp.asarray(W))
    d_x, d_w = pull(jnp.asarray(G))
    x, g = X.reshape(-1, 32), G.reshape(-1, 16)
    np.testing.assert_allclose(y.reshape(-1, 16), multiplied(x, W, (values, values)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_x.reshape(-1, 32), multiplied(g, W.T, (gradients, values)), rtol=1e-5, atol=1e-5)
    expected = x.T @ g if kind == "int8" else multiplied(np.ascontiguousarray(x.T), g, (values, gradients))
    np.testing.assert_allclose(d_w, expected, rtol=1e-5, atol=1e-5)


def test_zeros_and_one_large_row_do_no_harm():
    x = np.concatenate([np.zeros((1, 32)), 1e4 * X[0, :1], X[0, 1:3]]).astype(np.float32)
    for kind in FORMATS:
        y = np.asarray(quantized(kind, jnp.asarray(x), jnp.asarray(W)))
        assert not y[0].any()
        # A row is as exact as it is without the large one.
        np.testing.assert_array_equal(y[2:], quantized(kind, jnp.asarray(x[2:]), jnp.asarray(W)))


@pytest.mark.parametrize(("kind", "count"), [("int8", 2 * 6), ("float8", 3 * 6)])
def test_dense_layers_of_a_step_multiply_in_8_bits(kind, count):
    """The six matrices of a layer: forward, for inputs, and in float8 for kernels; attention and embeddings do not."""
    config = tiny(quantize=kind, activation="gelu")
    params, tokens = draw(config), ids(config)

    def loss(params):
        return Model(config).apply({"params": params}, tokens)[0].sum()

    sizes = [np.dtype(left).itemsize for left, _ in products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)]
    assert sizes.count(1) == count < len(sizes)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.03), ("float8", 0.2)])
def test_a_network_stays_near(kind, error):
    """The gradient of all parameters: off by at most four times what one product is (0.75 % and 5 %; 16 products deep)."""
    config = tiny(activation="gelu")
    params, tokens = draw(config), ids(config)
    loss, gradient = loss_and_gradient(config, params, tokens)
    found, found_gradient = loss_and_gradient(dataclasses.replace(config, quantize=kind), params, tokens)
    difference = jax.tree.map(lambda a, b: a - b, gradient, found_gradient)
    norm, off = (float(optax.tree.norm(tree)) for tree in (gradient, difference))
    assert found != loss
    assert 0 < off < error * norm


def test_experts_and_unknown_formats_are_refused():
    with pytest.raises(UserError, match="experts have no products in 8 bits"):
        tiny(quantize="int8", experts=Experts(count=2, active=1))
    with pytest.raises(UserError, match="quantize"):
        tiny(quantize="int4")
