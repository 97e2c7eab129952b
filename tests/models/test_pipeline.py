"""Layers in stages: losses, gradients and runs of simulated devices against one, and the exchanges of the compiled program."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Mesh, load, override
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.models.lstm import LSTM, LSTMModel
from lm.models.model import Model
from lm.models.pipeline import micro_batches
from lm.models.transformer import Transformer
from lm.objectives.base import resolve, training_batches
from lm.planning import operations
from lm.planning.hlo import Shape, program_of
from lm.planning.traced import ticks
from lm.sharding import make_mesh, place, shardings, unbox
from lm.train import abstract_batch, compile_step, numbers_of
from lm.training.state import abstract_state, initialise

ROWS, LENGTH = 16, 8
TINY = Transformer(vocab=32, context=LENGTH, width=16, depth=4, heads=2, positions="bucket", dropout=0.1, attention_dropout=0.1)


def loss(params, tokens_BT, segments_BT, weights_BTD, keys_B):
    states_BTD, _ = Model(TINY).apply({"params": params}, tokens_BT, segments_BT=segments_BT, keys_B=keys_B)
    return (states_BTD * weights_BTD).sum()


def test_stages_change_neither_loss_nor_gradient():
    """Rows take their segments and keys of dropout along; layers stay where they are, and only activations move."""
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 32, (ROWS, LENGTH)), np.sort(rng.integers(0, 3, (ROWS, LENGTH)))
    batch += rng.standard_normal((ROWS, LENGTH, 16), np.float32), jax.random.split(jax.random.key(1), ROWS)
    boxed = Model(TINY).init(jax.random.key(0), batch[0])["params"]
    params, mesh = unbox(boxed), make_mesh({"data": 2, "stage": 4})
    step = jax.jit(jax.value_and_grad(loss))
    expected = step(params, *batch)
    with jax.set_mesh(mesh):
        layout = shardings(boxed, mesh)
        traced = step.trace(jax.device_put(params, layout), *batch)
        compiled = traced.lower().compile()
        found = compiled(jax.device_put(params, layout), *batch)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1), path
    assert ticks(traced.jaxpr.jaxpr) == 8 + 3  # four stages, the devices of each part of the data with 8 rows: M = 8
    along = exchanges(compiled.as_text(), mesh)
    assert along["collective-permute"] == {"stage"}
    # Of the layers nothing is gathered: only the rows' segments, positions and keys, which are no fractions.
    assert {shape.dtype for shape in over_stages(compiled.as_text(), mesh)} == {"s32", "u32"}
    gradient = found[1]["stack"]["layers"]["mlp"]["up"]["kernel"]
    assert gradient.addressable_shards[0].data.shape == (1, 16, 64)  # each device has that of its own layer


def exchanges(text: str, mesh: jax.sharding.Mesh) -> dict[str, set[str]]:
    """Return the mesh axes of each kind of collective in a program."""
    found: dict[str, set[str]] = {}
    for one in operations.collectives(program_of(text), dict(mesh.shape)):
        found.setdefault(one.kind, set()).update(one.axes)
    return found


def over_stages(text: str, mesh: jax.sharding.Mesh) -> list[Shape]:
    """Return the arrays that a program gathers over stages."""
    found = []
    for one in program_of(text).runs():
        for line in one.computation.values():
            collective = operations.collective_of(line, one, dict(mesh.shape))
            if collective and collective.kind == "all-gather" and "stage" in collective.axes:
                found += line.shapes
    return found


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "sizes", "words"),
    [
        (Model(dataclasses.replace(TINY, share=True)), {"stage": 2}, "mesh.stage=2 .* share one set of parameters"),
        (LSTMModel(LSTM(vocab=32, context=8, width=16, depth=2)), {"stage": 2}, "not those of LSTM: set mesh.stage=1"),
        (Model(TINY), {"stage": 2, "expert": 2}, "mesh.stage=2 does not go with mesh.expert=2"),
    ],
)
def test_networks_and_meshes_without_stages(network, sizes, words):
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    with jax.set_mesh(mesh), pytest.raises(UserError, match=words):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((4, 8), jnp.int32))


def test_layers_divide_among_the_stages():
    boxed = jax.eval_shape(Model(TINY).init, jax.random.key(0), jnp.zeros((4, 8), jnp.int32))["params"]
    with pytest.raises(
        UserError, match=r"the layers axis of .* has size 4, which does not divide among the 3 devices of stage"
    ):
        shardings(boxed, make_mesh({"stage": 3}, jax.devices()[:3]))


@pytest.mark.parametrize(("rows", "chosen", "expected"), [(8, 0, 4), (6, 0, 2), (8, 2, 2), (8, 8, 8)])
def test_the_number_of_micro_batches(rows, chosen, expected):
    assert micro_batches(rows, 2, chosen) == expected


@pytest.mark.parametrize("chosen", [3, 16])
def test_micro_batches_that_do_not_divide(chosen):
    with pytest.raises(UserError, match=f"pipeline_batches={chosen} does not divide the 8 rows of 2 stages .*: set 2, 4, 8"):
        micro_batches(8, 2, chosen)


# -- whole steps -------------------------------------------------------------------------------------------------------


@cache
def run(name: str, mesh: Mesh, changes: tuple[tuple[str, str], ...]):
    """Losses, parameters, compiled program and mesh of two steps; a plain rule, as Adam's division enlarges rounding."""
    plain = [("optimizer.name", "sgd"), ("optimizer.lr", "0.5"), ("optimizer.average", "0"), ("batch", "16")]
    config = override(load(f"tests/configs/{name}.py"), [*plain, *changes])
    config, corpus = resolve(dataclasses.replace(config, mesh=mesh), prepare(config.data))
    batches = training_batches(config, corpus, (0, config.batch))
    made = make_mesh(dataclasses.asdict(mesh), jax.devices()[:1] if mesh == ONE else jax.devices())
    with jax.set_mesh(made):
        batch, losses = abstract_batch(place(batches[0], made, config.batch)), []
        abstract = abstract_state(config, batch, made)
        state, step = initialise(config, batch, abstract), compile_step(config, abstract, batch)
        for i in range(2):
            state, sums = step(state, place(batches[i], made, config.batch), numbers_of(config))
            losses.append(float(sums["loss"][0] / sums["loss"][1]))
        return losses, jax.device_get(state.params), step.as_text(), made


ONE = Mesh(data=1)
DEPTH = 4
DEEP = ("objective.model.depth", str(DEPTH))
DEEP_PAIR = tuple((f"objective.model.{side}.depth", str(DEPTH)) for side in ("encoder", "decoder"))
CHANGES = {
    "tiny_span": DEEP_PAIR,
    "tiny_experts": (DEEP, ("objective.model.experts.count", "4"), ("objective.model.pipeline_batches", "4")),
}
NAMES = ["tiny", "tiny_masked", "tiny_replaced", "tiny_span", "tiny_permuted", "tiny_contrastive",
         "tiny_recurrent", "tiny_experts"]  # fmt: skip
MESHES = [
    Mesh(data=4, stage=2),
    Mesh(data=1, stage=2, fsdp=2, tensor=2),
    Mesh(data=2, stage=4),
    Mesh(data=2, stage=2, context=2),
]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: str(mesh)[5:-1])
@pytest.mark.parametrize("name", NAMES)
def test_steps_of_every_objective(name, mesh):
    if name == "tiny_replaced" and mesh.tensor > 1:
        pytest.skip("the one head of its generator does not divide")
    changes, file = CHANGES.get(name, (DEEP,)), name.replace("_experts", "")
    losses, params, text, made = run(file, mesh, changes)
    expected, expected_params, _, _ = run(file, ONE, changes)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected_params), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-3), path
    along = exchanges(text, made)
    assert "stage" in along["collective-permute"]
    assert not [shape for shape in over_stages(text, made) if shape.dtype == "f32" and shape.sizes[0] == DEPTH], (
        "a gathered layer"
    )
