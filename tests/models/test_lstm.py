"""The LSTM: torch's to the digit, forward and backward; states that stop at documents and go on across rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.models.lstm import LSTM, LSTMModel, recur, scan
from lm.sharding import axes_of, unbox

torch = pytest.importorskip("torch")

SMALL = LSTM(vocab=11, pad_vocab=4, context=9, width=16, depth=2)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 9)).astype(np.int32)
SEGMENTS = np.array([[1] * 9, [1, 1, 2, 2, 2, 3, 4, 4, 4], [1, 1, 1, 1, 1, 1, 0, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def params():
    """Drawn parameters, biases included, that none of the parts be zero."""
    tree = unbox(LSTMModel(SMALL).init(jax.random.key(0), TOKENS)["params"])
    noise = jax.random.split(jax.random.key(1), len(jax.tree.leaves(tree)))
    noise = jax.tree.unflatten(jax.tree.structure(tree), list(noise))
    return jax.tree.map(lambda x, k: x + 0.3 * jax.random.normal(k, x.shape), tree, noise)


def states(params, *inputs, **words):
    return LSTMModel(SMALL).apply({"params": params}, *inputs, **words)


def reference(params) -> "torch.nn.LSTM":
    """Copy the layers into torch's, whose matrices are (4 D, D) and whose two biases are added."""
    net = torch.nn.LSTM(SMALL.width, SMALL.width, SMALL.depth, batch_first=True)
    with torch.no_grad():
        for layer in range(SMALL.depth):
            ours = jax.tree.map(lambda x, n=layer: torch.tensor(np.array(x[n])), params["layers"])
            getattr(net, f"weight_ih_l{layer}").copy_(ours["input"]["kernel"].reshape(SMALL.width, -1).T)
            getattr(net, f"weight_hh_l{layer}").copy_(ours["recurrent"].reshape(SMALL.width, -1).T)
            getattr(net, f"bias_ih_l{layer}").copy_(ours["bias"].reshape(-1))
            getattr(net, f"bias_hh_l{layer}").zero_()
    return net


def test_forward_and_gradients_are_torchs(params):
    net = reference(params)
    table = torch.tensor(np.array(params["embed"]["table"]), requires_grad=True)
    out, (hidden, cell) = net(table[torch.tensor(TOKENS).long()])
    probe = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    ((out * torch.tensor(probe)).sum() + hidden.square().sum() + cell.sum()).backward()

    def loss(params):
        h_BTD, state = states(params, TOKENS)
        return (h_BTD * probe).sum() + (state.hidden_BD**2).sum() + state.cell_BD.sum(), (h_BTD, state)

    grads, (h_BTD, state) = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(h_BTD, out.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(state.hidden_BD, hidden.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(state.cell_BD, cell.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(grads["embed"]["table"], table.grad.numpy(), atol=1e-4)
    for layer in range(SMALL.depth):
        found = jax.tree.map(lambda x, n=layer: np.array(x[n]).reshape(-1, 4 * SMALL.width), grads["layers"])
        for name, ours in (("ih", found["input"]["kernel"]), ("hh", found["recurrent"])):
            np.testing.assert_allclose(ours.T, getattr(net, f"weight_{name}_l{layer}").grad.numpy(), atol=1e-4)
        np.testing.assert_allclose(found["bias"][0], getattr(net, f"bias_ih_l{layer}").grad.numpy(), atol=1e-4)


def test_the_gradient_by_hand_is_the_scans(params):
    """Of everything that has one, with rows that start anew in between."""
    rng = np.random.default_rng(2)
    pre = jnp.asarray(rng.normal(size=(9, 3, 4, 16)), jnp.float32)
    keep = jnp.asarray(rng.random((9, 3)) < 0.7)
    state = jax.tree.map(lambda x: x[0], states(params, TOKENS)[1])
    kernel = params["layers"]["recurrent"][0]

    def loss(run):
        def total(pre, kernel, state):
            hidden, last = run(pre, kernel, keep, state)
            return (jnp.sin(hidden) * jnp.arange(9)[:, None, None]).sum() + (last.cell_BD * last.hidden_BD).sum()

        return jax.jit(jax.grad(total, (0, 1, 2)))(pre, kernel, state)

    def check(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())

    jax.tree.map(check, loss(recur), loss(lambda *inputs: scan(*inputs)[:2]))


def test_packed_documents_are_as_alone(params):
    packed = states(params, TOKENS, SEGMENTS)[0]
    for row, (tokens, segments) in enumerate(zip(TOKENS, SEGMENTS)):
        for number in set(segments.tolist()) - {0}:
            alone = states(params, tokens[None, segments == number])[0][0]
            np.testing.assert_allclose(packed[row, segments == number], alone, atol=1e-6)


def test_nothing_from_later_tokens_or_other_documents(params):
    """The gradient is exactly 0 there, and is not within a document."""
    table = params["embed"]["table"]

    def from_vectors(x_BTD):
        def lookup(module, args, kwargs, context):
            return x_BTD if context.module.name == "embed" and context.method_name == "__call__" else module(*args)

        import flax.linen as nn

        with nn.intercept_methods(lambda step, args, kwargs, context: lookup(step, args, kwargs, context)):
            return states(params, TOKENS, SEGMENTS)[0].sum(-1)

    gradient = jax.jit(jax.jacobian(from_vectors))(table[TOKENS])
    reach = np.abs(gradient).max(-1)
    for b in range(3):
        for t in range(9):
            for s in range(9):
                allowed = s <= t and SEGMENTS[b, s] == SEGMENTS[b, t]
                assert (reach[b, t, b, s] > 0) == allowed
            assert not reach[b, t, [r for r in range(3) if r != b]].any()


def test_a_row_goes_on_from_a_state(params):
    whole, end = states(params, TOKENS, SEGMENTS)
    _, state = states(params, TOKENS[:, :4], SEGMENTS[:, :4])
    rest, last = states(params, TOKENS[:, 4:], SEGMENTS[:, 4:], state)
    np.testing.assert_allclose(rest, whole[:, 4:], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, end)


def test_dropout_needs_keys_and_depends_on_the_row_alone(params):
    config = LSTM(vocab=11, pad_vocab=4, context=9, width=16, depth=2, dropout=0.4)
    run = jax.jit(lambda keys, tokens: LSTMModel(config).apply({"params": params}, tokens, keys_B=keys)[0])
    keys = jax.random.split(jax.random.key(0), 3)
    both = run(keys, TOKENS)
    np.testing.assert_allclose(both[1:2], run(keys[1:2], TOKENS[1:2]), atol=1e-6)
    assert float((both == 0).mean()) == pytest.approx(0.4, abs=0.1)
    plain = LSTMModel(config).apply({"params": params}, TOKENS)[0]
    np.testing.assert_array_equal(plain, states(params, TOKENS)[0])


def test_unrolling_and_bfloat16_change_no_more_than_rounding(params):
    plain = states(params, TOKENS, SEGMENTS)[0]
    for changes, atol in (({"unroll": 3}, 1e-6), ({"dtype": "bfloat16"}, 0.05)):
        config = LSTM(vocab=11, pad_vocab=4, context=9, width=16, depth=2, **changes)
        other = LSTMModel(config).apply({"params": params}, TOKENS, SEGMENTS)[0]
        np.testing.assert_allclose(np.asarray(other, np.float32), plain, atol=atol)


def test_parameters_are_named_and_start_as_the_docstring_says():
    drawn = LSTMModel(SMALL).init(jax.random.key(0), TOKENS)["params"]
    axes = axes_of(drawn)
    assert axes["layers"]["recurrent"] == ("layers", "embed", None, "mlp")
    assert axes["layers"]["input"]["kernel"] == ("layers", "embed", None, "mlp")
    assert axes["embed"]["table"] == ("vocab", "embed")
    tree = unbox(drawn)
    assert tree["embed"]["table"].shape == (12, 16)
    np.testing.assert_array_equal(tree["layers"]["bias"][:, 1], 1)
    np.testing.assert_array_equal(tree["layers"]["bias"][:, [0, 2, 3]], 0)
    assert "output" not in tree
    untied = LSTMModel(LSTM(vocab=11, width=16, depth=1, tied=False)).init(jax.random.key(0), TOKENS)["params"]
    assert unbox(untied)["output"]["table"].shape == (11, 16)
    logits = LSTMModel(SMALL).apply({"params": tree}, method="head").logits(jnp.ones((2, 16)))
    assert (logits[:, 11] < -1e30).all()


def test_shapes_out_of_range_are_refused():
    for wrong in ({"width": 0}, {"depth": 0}, {"dropout": 1.0}, {"dtype": "float16"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            LSTM(**wrong)
