"""A mixture is its parts: the same losses, the same gradients, one trunk."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import load
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives.base import resolve, training_batches
from lm.objectives.causal import Causal
from lm.objectives.mixture import Multitask, Part
from lm.sharding import unbox
from lm.train import gradients


@functools.cache
def ready(take: str):
    config = dataclasses.replace(load(f"tests/configs/tiny_mixture.py:take={take}"), batch=4)
    config, corpus = resolve(config, prepare(config.data))
    batch = training_batches(config, corpus)[0]
    params = jax.jit(lambda key: unbox(config.objective.init(key, batch)))(jax.random.key(0))
    return config, batch, params


@functools.cache
def step(take: str):
    config, batch, params = ready(take)
    keys_B = jax.random.split(jax.random.key(1), config.batch)
    return jax.jit(lambda memory: gradients(config, params, batch, memory, keys_B))


def test_one_trunk_and_a_head_each():
    _, _, params = ready("all")
    assert set(params) == {"trunk", "causal", "masked"}
    assert set(params["trunk"]) == {"embed", "input", "stack"}
    for part in ("causal", "masked"):
        assert set(params[part]) == {"transform", "head_bias"}


def test_the_sum_of_its_parts():
    config, batch, params = ready("all")
    keys_B = jax.random.split(jax.random.key(1), config.batch)
    grads, sums, _ = jax.device_get(step("all")(None))
    total, trunk = 0.0, None
    for part in config.objective.parts:
        alone = dataclasses.replace(config, objective=part.objective)
        found = jax.jit(lambda *args, alone=alone: gradients(alone, *args))
        own, own_sums, _ = jax.device_get(found(part.params(params), part.of(batch), None, keys_B))
        for name, pair in own_sums.items():
            if f"{part.name}/{name}" in sums:
                np.testing.assert_allclose(sums[f"{part.name}/{name}"], pair, rtol=1e-5)
        total += part.weight * own_sums["loss"][0] / own_sums["loss"][1]
        scaled = jax.tree.map(lambda g, w=part.weight: w * g, {k: own[k] for k in params["trunk"]})
        trunk = scaled if trunk is None else jax.tree.map(jnp.add, trunk, scaled)
    np.testing.assert_allclose(sums["loss"][0], total, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads["trunk"]), jax.tree.leaves(trunk), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_one_part_a_step():
    """The draw follows the count that goes from step to step, and the weights: here 2 to 1."""
    config, _, _ = ready("one")
    drawn = []
    for count in range(12):
        grads, sums, memory = jax.device_get(step("one")(jnp.full(config.batch, count)))
        assert (memory == count + 1).all()
        active = {name.partition("/")[0] for name, pair in sums.items() if "/" in name and pair[1] > 0}
        assert len(active) == 1
        drawn += active
        still = ({"causal", "masked"} - active).pop()
        assert not any(np.any(x) for x in jax.tree.leaves(grads[still]))
        assert any(np.any(x) for x in jax.tree.leaves(grads[drawn[-1]]))
    assert set(drawn) == {"causal", "masked"}
    shares = jnp.log(jnp.array([part.weight for part in config.objective.parts]))
    many = jax.vmap(lambda i: jax.random.categorical(jax.random.fold_in(jax.random.key(0), i), shares))(jnp.arange(9000))
    assert float((many == 0).mean()) == pytest.approx(2 / 3, abs=4 * (2 / 9 / 9000) ** 0.5)


def test_evaluation_measures_all_parts():
    config, batch, params = ready("one")
    sums, _ = jax.jit(lambda: config.objective.loss(params, batch, None, None))()
    assert all(weight > 0 for _, weight in jax.device_get(sums).values())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("a", {})], "different names"),
        ([("a", {}), ("a", {})], "different names"),
        ([("a b", {}), ("c", {})], "plain word"),
        ([("query", {}), ("c", {})], "plain word"),  # what XLNet's network has
        ([("a", {}), ("b", {"weight": 0.0})], "above 0"),
    ],
)
def test_mistakes(parts, said):
    with pytest.raises(UserError, match=said):
        Multitask(parts=tuple(Part(name=n, objective=Causal(model=Transformer()), **more) for n, more in parts))


def test_parts_of_different_shapes_are_refused():
    objective = Multitask(
        parts=tuple(
            Part(name=f"p{width}", objective=Causal(model=Transformer(vocab=9, context=8, width=width, depth=1, heads=2)))
            for width in (8, 16)
        )
    )
    batch = {f"p{width}/tokens": np.zeros((1, 8), np.int32) for width in (8, 16)}
    with pytest.raises(UserError, match="the same model"):
        jax.eval_shape(objective.init, jax.random.key(0), batch)
