"""The adaptive softmax against the full distribution: the same loss and gradients, however few tokens a cluster has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.adaptive import Adaptive, AdaptiveHead, adaptive_cross_entropy
from lm.sharding import AXES, make_mesh, unbox

VOCAB, WIDTH, ROWS, LENGTH = 31, 12, 4, 8
FORMS = {
    "one table": {"embed": 12},
    "one table, projected": {"embed": 10},
    "tables by width": {"embed": 12, "divide": 2},
    "untied": {"embed": 8, "divide": 2, "tied": (False, False, False)},
    "falling order": {"embed": 12, "divide": 2, "order": "falling"},
    "padded tables": {"embed": 12, "divide": 2, "rows_multiple": 8},
    "no clusters": {"embed": 12, "cutoffs": (), "tied": (False,)},
}


def module(**changes) -> Adaptive:
    return Adaptive(**{"vocab": VOCAB, "width": WIDTH, "cutoffs": (9, 20), "tied": (False, True, True), **changes})


def draw(made: Adaptive) -> dict:
    shapes = unbox(jax.eval_shape(lambda key: made.init(key, np.zeros((1, 2), np.int32), jnp.float32), jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes["params"])


def head(made: Adaptive, params) -> AdaptiveHead:
    return made.apply({"params": params}, method="head")


@functools.cache
def inputs():
    rng = np.random.default_rng(1)
    h = jnp.asarray(rng.normal(size=(ROWS, LENGTH, WIDTH)), jnp.float32)
    targets = jnp.asarray(rng.integers(VOCAB, size=(ROWS, LENGTH)), jnp.int32)
    weights = jnp.asarray(rng.integers(0, 3, size=(ROWS, LENGTH)), jnp.float32)
    return h, targets, weights


@functools.cache
def compiled(form: str, chunk: int, dense: bool):
    """Loss with its gradients, by the full distribution or by clusters."""
    made = module(**FORMS[form])

    def loss(params, h, targets, weights):
        if not dense:
            return adaptive_cross_entropy(h, head(made, params), targets, weights, chunk=chunk)["total"]
        logits = head(made, params).logits(h)
        return -jnp.sum(weights * jnp.take_along_axis(logits, targets[..., None], -1)[..., 0])

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def close(left, right, atol=2e-3):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4), left, right)


@pytest.mark.parametrize("form", FORMS)
def test_same_loss_and_gradients_as_the_whole_distribution(form):
    params = draw(module(**FORMS[form]))
    close(compiled(form, 5, False)(params, *inputs()), compiled(form, 0, True)(params, *inputs()))


@pytest.mark.parametrize("chunk", [0, 1, 32])
def test_chunks_do_not_matter(chunk):
    params = draw(module(**FORMS["tables by width"]))
    close(
        compiled("tables by width", chunk, False)(params, *inputs()),
        compiled("tables by width", 0, True)(params, *inputs()),
    )


@pytest.mark.parametrize(("low", "high"), [(0, 9), (9, 20), (20, 31)])
def test_all_tokens_in_one_cluster_or_none(low, high):
    """Shapes are fixed but the tokens of a cluster may be none or all."""
    h, targets, weights = inputs()
    targets = low + targets % (high - low)
    params = draw(module(**FORMS["tables by width"]))
    for w in (weights, jnp.zeros_like(weights)):
        found = compiled("tables by width", 5, False)(params, h, targets, w)
        close(found, compiled("tables by width", 0, True)(params, h, targets, w))


@pytest.mark.parametrize("form", FORMS)
def test_probabilities_sum_to_one(form):
    made = module(**FORMS[form])
    logits = head(made, draw(made)).logits(inputs()[0])
    assert logits.shape == (ROWS, LENGTH, VOCAB)
    if made.cutoffs:  # without clusters they are logits
        np.testing.assert_allclose(jnp.exp(logits).sum(-1), 1, atol=1e-4)


def test_probability_is_that_of_the_cluster_times_that_within():
    """By hand, for one token of the last cluster."""
    made = module(**FORMS["untied"])
    p, h = draw(made), np.asarray(inputs()[0][0, 0])
    first = np.concatenate([p["table0"], p["cluster_table"]]) @ (h @ p["output0"])
    first += np.concatenate([p["bias0"][:9], p["cluster_bias"]])
    last = p["table2"] @ (h @ p["output2"]) + p["bias2"]

    def share(scores, i):
        return np.exp(scores[i] - scores.max()) / np.exp(scores - scores.max()).sum()

    found = jnp.exp(head(made, p).logits(inputs()[0][0, 0]))
    np.testing.assert_allclose(found[25], share(first, 10) * share(last, 5), rtol=1e-4)
    np.testing.assert_allclose(found[4], share(first, 4), rtol=1e-4)


def test_orders_are_each_others_mirror():
    rising, falling = module(**FORMS["tables by width"]), module(**FORMS["falling order"])
    params = draw(rising)
    mirrored = {**params, **{name: params[name][::-1] for name in ("cluster_table", "cluster_bias")}}
    h = inputs()[0]
    np.testing.assert_allclose(head(rising, params).logits(h), head(falling, mirrored).logits(h), atol=1e-5)
    assert np.abs(head(rising, params).logits(h) - head(falling, params).logits(h)).max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_embedding_is_the_row_times_the_projection(form):
    made = module(**FORMS[form])
    params = draw(made)
    found = made.apply({"params": params}, np.arange(VOCAB), jnp.float32)
    for token in range(VOCAB):
        cluster = int(np.searchsorted(made.cutoffs, token, "right")) if made.divide > 1 else 0
        row = params[f"table{cluster}"][token - (0, *made.cutoffs)[cluster]]
        project = params.get(f"input{cluster}")
        np.testing.assert_allclose(found[token], row if project is None else project @ row, atol=1e-4)


def test_hits_follow_the_levels():
    """A hit: the head picks the token, or its cluster and that the token."""
    made = module(**FORMS["tables by width"])
    params, (h, _, _) = draw(made), inputs()
    made_head = head(made, params)
    first = np.asarray(made_head.clusters[0].logits(h)).argmax(-1)
    best = first.copy()
    for tail in (1, 2):
        inside = np.asarray(made_head.clusters[tail].logits(h)).argmax(-1) + made.cutoffs[tail - 1]
        best = np.where(first == made_head.column(tail), inside, best)
    assert (best >= 9).any()
    ones = jnp.ones((ROWS, LENGTH))
    assert adaptive_cross_entropy(h, made_head, jnp.asarray(best), ones, chunk=3)["hits"] == ROWS * LENGTH
    assert adaptive_cross_entropy(h, made_head, jnp.asarray((best + 1) % VOCAB), ones, chunk=3)["hits"] == 0


def test_tied_projections_are_one_parameter():
    assert {"output0", "input0", "input1", "input2"} <= set(draw(module(embed=12, divide=2)))
    assert "output1" not in draw(module(embed=12, divide=2))
    assert not {"output0", "input0"} & set(draw(module(embed=WIDTH)))


def test_a_mesh_changes_nothing():
    """Devices with different numbers of tokens in a cluster, and a row cut in two."""
    params = draw(module(**FORMS["tables by width"]))
    expected = compiled("tables by width", 3, False)(params, *inputs())
    with jax.set_mesh(make_mesh({**dict.fromkeys(AXES, 1), "data": 2, "context": 2, "tensor": 2})):
        made = module(**FORMS["tables by width"])

        def loss(params, h, targets, weights):
            return adaptive_cross_entropy(h, head(made, params), targets, weights, chunk=3)["total"]

        close(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, *inputs()), expected)
