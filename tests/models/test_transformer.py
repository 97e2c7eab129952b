"""Every choice of the stack against the same thing written out in float64, and what must not change a result."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from lm.errors import UserError
from lm.models import attend
from lm.models.heads import cross_entropy
from lm.models.model import Model
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from tests.models import reference
from tests.models.reference import documents, draw, tiny

CHOICES = {
    "gpt2": {},
    "relu": {"activation": "relu", "norm": "rms"},
    "silu": {"activation": "silu", "qkv_bias": False},
    "swiglu": {"activation": "swiglu", "norm": "rms", "bias": False, "qkv_bias": True},
    "reglu": {"activation": "reglu", "tied": False},
    "post": {"placement": "post", "eps": 1e-2},
    "parallel": {"parallel": True, "positions": "rotary", "rotary": Rotary(share=0.5)},
    "rotary": {"positions": "rotary", "rotary": Rotary(base=50.0), "heads": 4, "kv_heads": 2, "head": 6},
    "one key head": {"heads": 4, "kv_heads": 1, "positions": "none"},
    "qk layer norm": {"qk_norm": True},
    "qk rms norm": {"qk_norm": True, "norm": "rms", "positions": "rotary", "eps": 1e-3},
    "attention cap": {"attention_cap": 0.7},
    "logit cap": {"logit_cap": 2.0},
    "window": {"windows": (3,)},
    "alternating windows": {"windows": (2, 0, 5), "depth": 4},
    "alibi": {"positions": "alibi", "heads": 4},
    "bucket": {"positions": "bucket"},
    "sinusoidal": {"positions": "sinusoidal"},
    "wide heads": {"head": 10, "attention_cap": 3.0, "windows": (4, 0)},
    "sandwich": {"placement": "sandwich", "norm": "rms_one", "bias": False, "qk_norm": True},
    "two bases": {"positions": "rotary", "rotary": Rotary(base=300.0, local=9.0), "head": 6, "windows": (4, 0), "depth": 3},
    "depth one": {"depth": 1, "mlp": 0},
}
SEGMENTS, POSITIONS = documents(5, 1, 7, length=16)


def run(config, params, tokens, positions=None, segments=None, **options):
    @jax.jit
    def apply(params, tokens, positions, segments):
        model = Model(config)
        h, _ = model.apply({"params": params}, tokens, positions, segments, **options)
        return h, model.apply({"params": params}, method="head").logits(h)

    return jax.device_get(apply(params, tokens, positions, segments))


def ids(config, rows=2, length=16, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab, (rows, length), dtype=np.int32)


@pytest.mark.parametrize("name", CHOICES)
def test_against_float64(name):
    config = tiny(**CHOICES[name])
    params, tokens = draw(config), ids(config)
    segments, positions = np.tile(SEGMENTS, (2, 1)), np.tile(POSITIONS, (2, 1))
    h, logits = run(config, params, tokens, positions, segments)
    real = SEGMENTS > 0
    for row in range(2):
        expected, _ = reference.forward(config, params, tokens[row], POSITIONS, SEGMENTS)
        np.testing.assert_allclose(h[row][real], expected[real], atol=1e-4, rtol=1e-4)
        scores = reference.logits(config, params, expected)
        np.testing.assert_allclose(logits[row][real], scores[real], atol=2e-4, rtol=1e-4)
    assert np.abs(h[0] - h[1]).max() > 0.1


@pytest.mark.parametrize("name", ["gpt2", "window", "alibi", "bucket", "rotary"])
def test_bidirectional_against_float64(name):
    config = tiny(**CHOICES[name])
    params, tokens = draw(config, 1), ids(config, 1)
    h, _ = run(config, params, tokens, causal=False)
    expected, _ = reference.forward(config, params, tokens[0], causal=False)
    np.testing.assert_allclose(h[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "alternating windows", "alibi", "bucket", "one key head"])
def test_blocks_of_queries_change_nothing(name, monkeypatch):
    monkeypatch.setattr(attend, "BLOCK", 4)
    test_against_float64(name)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_blocks_leave_later_keys_out(remat):
    """Of four blocks' scores the causal triangle needs 10 of 16 squares; computed twice or not, none may be all keys."""
    config = tiny(context=4 * attend.BLOCK, depth=1, remat=remat)
    tokens = np.zeros((1, config.context), np.int32)
    text = jax.jit(lambda p, t: Model(config).apply({"params": p}, t)[0]).lower(draw(config), tokens).as_text()
    for keys in range(1, 5):
        assert f"x{attend.BLOCK}x{keys * attend.BLOCK}xf32" in text
    assert f"x{config.context}x{config.context}xf32" not in text


def loss_and_gradient(config, params, tokens, keys=None):
    weights = np.random.default_rng(3).normal(size=(*tokens.shape, config.width)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        h, _ = Model(config).apply({"params": params}, tokens, keys_B=keys)
        return jnp.sum(h * weights)

    return jax.device_get(loss(params))


BASE = tiny(dropout=0.2, attention_dropout=0.2, windows=(3, 0), qk_norm=True)


@pytest.fixture(scope="module")
def plain():
    params, tokens = draw(BASE), ids(BASE)
    return params, tokens, loss_and_gradient(BASE, params, tokens, jax.random.split(jax.random.key(0), 2))


@pytest.mark.parametrize(
    "change",
    [
        {"unroll": 0},
        {"remat": "full"},
        {"unroll": 0, "remat": "dots"},
        {"remat": "full", "keep": ("query", "up")},
        {"remat": "dots", "offload": True},
        {"remat": "full", "keep": ("key", "down"), "offload": True},
    ],
    ids=str,
)
def test_speed_settings_change_nothing(change, plain):
    """Values and gradients, with dropout on."""
    params, tokens, (loss, gradient) = plain
    config = dataclasses.replace(BASE, **change)
    found, found_gradient = loss_and_gradient(config, params, tokens, jax.random.split(jax.random.key(0), 2))
    assert found == pytest.approx(loss, abs=1e-4)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * scale), gradient, found_gradient)


def test_rows_do_not_mix():
    config = tiny()
    params, tokens = draw(config), ids(config, 3)
    both, _ = run(config, params, tokens)
    one, _ = run(config, params, tokens[1:2])
    np.testing.assert_allclose(both[1:2], one, atol=2e-6)


def test_padded_vocabulary():
    """Ten more rows in the table: the same logits, and the lowest float where no token is."""
    config, padded = tiny(), tiny(pad_vocab=13)
    params, tokens = draw(config), ids(config)
    wider = draw(padded)
    assert wider["embed"]["table"].shape == (39, config.width)
    _, expected = run(config, params, tokens)
    table = np.concatenate([params["embed"]["table"], wider["embed"]["table"][config.vocab :]])
    _, logits = run(padded, {**params, "embed": {"table": table}}, tokens)
    np.testing.assert_allclose(logits[..., : config.vocab], expected, atol=2e-6)
    assert (logits[..., config.vocab :] == np.finfo(np.float32).min).all()


def test_bfloat16_is_near():
    config = tiny(qk_norm=True)
    params, tokens = draw(config), ids(config)
    h, logits = run(dataclasses.replace(config, dtype="bfloat16"), params, tokens)
    expected, expected_logits = run(config, params, tokens)
    assert h.dtype == jnp.bfloat16
    assert logits.dtype == np.float32
    assert 0 < np.abs(h.astype(np.float32) - expected).max() < 0.15
    assert 0 < np.abs(logits - expected_logits).max() < 0.5


def test_initial_values():
    """GPT-2: tables 0.02 and 0.01, matrices 0.02, residual outputs 0.02 / sqrt(2 depth), norms 1, biases 0."""
    config = Transformer(vocab=400, context=128, width=192, depth=8, heads=6)
    params = jax.jit(lambda key: Model(config).init(key, np.zeros((1, 8), np.int32)))(jax.random.key(0))["params"]
    stds = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): float(leaf.std())
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    layers = "stack/layers"
    wide = dict.fromkeys([f"{layers}/attention/{n}/kernel" for n in ("query", "key", "value")], 0.02)
    out = dict.fromkeys([f"{layers}/attention/out/kernel", f"{layers}/mlp/down/kernel"], 0.02 / 4)
    expected = {"embed/table": 0.02, "input/places/table": 0.01, f"{layers}/mlp/up/kernel": 0.02, **wide, **out}
    for name, std in stds.items():
        assert std == pytest.approx(expected.pop(name, 0.0), rel=0.02), name
    assert not expected
    norms = [params["stack"]["norm"], params["stack"]["layers"]["norm0"], params["stack"]["layers"]["norm1"]]
    assert all((n["scale"].value == 1).all() for n in norms)
    layer_0, layer_1 = params["stack"]["layers"]["mlp"]["up"]["kernel"].value[:2]
    assert abs(np.corrcoef(layer_0.ravel(), layer_1.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 13}, "width=13 does not divide among heads=3"),
        ({"kv_heads": 2}, "heads=3 does not divide among kv_heads=2"),
        ({"positions": "rotary", "head": 5}, "even head size"),
        ({"parallel": True, "placement": "post"}, "placement='pre'"),
        ({"activation": "gelo"}, "unknown activation 'gelo'"),
    ],
)
def test_shapes_that_do_not_fit(change, words):
    with pytest.raises(UserError, match=words):
        tiny(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "lyer"},
        {"placement": "mid"},
        {"positions": "rotery"},
        {"remat": "half"},
        {"dtype": "float16"},
        {"rotary": {"scaling": "yarm"}},
    ],
    ids=str,
)
def test_unknown_choices_are_refused(change):
    if "rotary" in change:
        change = {"rotary": (Rotary, change["rotary"])}
    with pytest.raises(UserError):
        tiny(**{k: v[0](**v[1]) if isinstance(v, tuple) else v for k, v in change.items()})


@pytest.mark.parametrize(
    "change",
    [{"heads": 0}, {"depth": 0}, {"pad_vocab": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"width": 0}, {"context": 0}],
    ids=str,
)
def test_sizes_out_of_range_are_refused(change):
    with pytest.raises(UserError):
        tiny(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": "sinusoidal", "width": 15},
        {"positions": "rotary", "head": 2, "rotary": Rotary(scaling="ntk", factor=2.0)},
    ],
    ids=str,
)
def test_positions_that_do_not_fit(change):
    with pytest.raises(UserError):
        tiny(**change)


def products(jaxpr):
    """The dtypes of both operands of every matrix product of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(x.aval.dtype for x in equation.invars)
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def test_recomputation_keeps_what_is_named():
    """Of a kept output the product is not in the backward pass; offloaded, it goes to the host's memory and back."""

    def program(**changes):
        config = tiny(remat="full", activation="gelu", **changes)
        tokens = ids(config)
        gradient = jax.grad(lambda params: Model(config).apply({"params": params}, tokens)[0].sum())
        return jax.make_jaxpr(gradient)(draw(config)).jaxpr

    def count(jaxpr):
        return len(list(products(jaxpr)))

    kept, offloaded = program(keep=("query", "up")), program(keep=("query", "up"), offload=True)
    assert count(program()) - 2 == count(kept) == count(offloaded)
    assert "host" in str(offloaded)
    assert "host" not in str(kept)


@pytest.mark.parametrize("changes", [{}, {"attention": "blockwise", "positions": "alibi"}], ids=["direct", "blockwise"])
def test_products_of_half_precision_are_of_one_dtype(changes):
    """Forward and backward: jax by itself multiplies a float32 gradient with bfloat16."""
    config = tiny(dtype="bfloat16", **changes)
    params, tokens = draw(config), np.zeros((2, 16), np.int32)

    def loss(params):
        h, _ = Model(config).apply({"params": params}, tokens)
        head = Model(config).apply({"params": params}, method="head")
        return cross_entropy(h, head, jnp.asarray(tokens), jnp.ones(tokens.shape))["total"]

    found = list(products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert len(found) > 10
    assert all(left == right for left, right in found)
