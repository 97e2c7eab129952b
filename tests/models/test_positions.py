"""Sinusoids, rotary angles, ALiBi and T5 buckets against the published tables and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.models.mlp import ACTIVATIONS
from lm.models.model import Model
from lm.models.norms import NORMS, NormKind
from lm.models.positions import POSITIONS, PositionKind, Rotary, alibi_slopes, buckets, frequencies, rotate, sinusoids
from tests.models.reference import draw, tiny, turn


def test_sinusoids():
    """spec.md, A.2: halves concatenated."""
    found = sinusoids(jnp.array([[0, 1, -1]]), 4)[0]
    expected = [[0, 0, 1, 1], [0.841471, 0.01, 0.540302, 0.99995], [-0.841471, -0.01, 0.540302, 0.99995]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    places = np.array([*range(700), 4095, 99_999, 2**18 - 1, -64, -5000])
    angles = places[:, None] / 10_000 ** (np.arange(128) / 128)
    wide = jax.jit(sinusoids, static_argnums=1)(places[None], 256)[0]
    np.testing.assert_allclose(wide, np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=1e-6)


def test_sinusoids_are_marians():
    pytest.importorskip("torch")
    marian = pytest.importorskip("transformers.models.marian.modeling_marian")
    theirs = marian.MarianSinusoidalPositionalEmbedding(1024, 512)
    np.testing.assert_allclose(sinusoids(jnp.arange(1024)[None], 512)[0], theirs.create_weight().numpy(), atol=1e-6)


# spec.md, A.4: rel -> (bidirectional, causal)
TABLE = {
    -1000: (15, 31), -200: (15, 31), -128: (15, 31), -127: (15, 31), -100: (15, 30), -64: (14, 26), -40: (12, 23),
    -32: (12, 21), -20: (10, 17), -16: (10, 16), -12: (9, 12), -8: (8, 8), -7: (7, 7), -1: (1, 1), 0: (0, 0),
    1: (17, 0), 7: (23, 0), 8: (24, 0), 9: (24, 0), 12: (25, 0), 16: (26, 0), 20: (26, 0), 32: (28, 0), 40: (28, 0),
    64: (30, 0), 100: (31, 0), 127: (31, 0), 128: (31, 0), 200: (31, 0),
}  # fmt: skip


def test_buckets_of_the_table():
    relative = jnp.array(list(TABLE))
    both, causal = zip(*TABLE.values())
    np.testing.assert_array_equal(buckets(relative, causal=False), both)
    np.testing.assert_array_equal(buckets(relative, causal=True), causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("number", "distance"), [(32, 128), (16, 64), (64, 512), (8, 20)])
def test_buckets_are_transformers(causal, number, distance):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    relative = np.arange(-2999, 3000)
    theirs = t5.T5Attention._relative_position_bucket(torch.tensor(relative), not causal, number, distance).numpy()
    ours = buckets(jnp.array(relative), causal=causal, number=number, distance=distance)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(theirs)) == (number if causal else number - 1)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 25, 40, 96])
def test_alibi_is_blooms(heads):
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    length = 5
    theirs = bloom.build_alibi_tensor(torch.ones(1, length), heads, torch.float32).reshape(heads, length).numpy()
    np.testing.assert_allclose(alibi_slopes(heads)[:, None] * np.arange(length), theirs, rtol=1e-5)


def test_alibi_series():
    """Press et al. 2022: for 8 heads 1/2, 1/4, ..., 1/256."""
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_rotate(share):
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 5, 3, 16)).astype(np.float32), np.array([[0, 1, 2, 0, 1], [9, 3, 4, 5, 1000]])
    rotary = Rotary(share=share, base=100.0)
    found = rotate(jnp.asarray(x), jnp.asarray(positions), rotary)
    for row in range(2):
        for head in range(3):
            expected = turn(x[row, :, head].astype(np.float64), positions[row], rotary)
            np.testing.assert_allclose(found[row, :, head], expected, atol=2e-4)
    np.testing.assert_array_equal(found[..., int(16 * share) :], x[..., int(16 * share) :])
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 32)), jnp.float32) for _ in range(2))

    def score(t, s):
        at = [rotate(x, jnp.array([[place]]), Rotary()) for x, place in ((q, t), (k, s))]
        return float(jnp.sum(at[0] * at[1]))

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-2)


def test_rotate_keeps_the_dtype_and_computes_in_float32():
    x = jnp.ones((1, 3, 1, 8), jnp.bfloat16)
    places = jnp.array([[0, 300, 301]])  # bfloat16 cannot tell 300 from 301
    found = rotate(x, places, Rotary())
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, rotate(x.astype(jnp.float32), places, Rotary()).astype(jnp.bfloat16))
    assert (found[0, 1] != found[0, 2]).any()


def test_frequencies():
    inverse, factor = frequencies(Rotary(base=10_000.0), 8)
    np.testing.assert_allclose(inverse, [1, 0.1, 0.01, 0.001], rtol=1e-6)
    assert factor == 1
    assert frequencies(Rotary(share=0.25), 128)[0].shape == (16,)


def test_buckets_compile():
    """Under jit the same numbers: the thresholds are constants."""
    relative = jnp.arange(-300, 300)
    jitted = jax.jit(lambda r: buckets(r, causal=False))
    np.testing.assert_array_equal(jitted(relative), buckets(relative, causal=False))


def test_an_encoding_a_norm_and_an_activation_are_one_entry_each(monkeypatch):
    """From outside: a learned slope on distances (a parameter of the stack), positions added, LayerNorm by 1 + scale."""

    def slope(c, param, causal):
        rate = param("rate", lambda key, shape: jnp.full(shape, 0.3), (c.heads,))
        return lambda distances_TS: -rate[:, None, None] * jnp.abs(distances_TS)

    def ramp(c, positions_BT, width, dtype):
        return positions_BT[..., None].astype(dtype) * jnp.linspace(-1, 1, width, dtype=dtype)

    with pytest.raises(UserError, match="unknown positions 'kerple'"):
        tiny(positions="kerple")
    monkeypatch.setitem(POSITIONS, "kerple", PositionKind(added=ramp, bias=slope, context="free"))
    monkeypatch.setitem(NORMS, "layer_one", NormKind(centred=True, shift=True, offset=True))
    monkeypatch.setitem(ACTIVATIONS, "siglu", (jax.nn.sigmoid, True))
    tokens, config = np.arange(6)[None], tiny(positions="kerple", norm="layer_one", activation="siglu", depth=1)
    params = draw(config)
    assert params["stack"]["rate"].shape == (3,)
    assert "gate" in params["stack"]["layers"]["mlp"]

    @jax.jit
    def states(params, positions):
        return Model(config).apply({"params": params}, tokens, positions)[0]

    flat = {**params, "stack": {**params["stack"], "rate": np.zeros(3, np.float32)}}
    places = np.arange(6)[None]
    assert np.abs(states(flat, places) - states(params, places))[0, 1:].max() > 1e-3  # the bias acts
    assert np.abs(states(params, places + 5) - states(params, places)).max() > 1e-3  # and so do added positions
