"""Logical axes to mesh axes: the table, the errors, placing batches. One device; eight are in their own test."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from lm import sharding
from lm.config import Mesh
from lm.errors import UserError
from lm.models.model import Model
from lm.sharding import AXES, RULES, Named, axes_of, constrain, make_mesh, place, shardings, spec, unbox
from tests.models.reference import draw, tiny

ONE = dict.fromkeys(AXES, 1)


def mesh():
    return make_mesh(dataclasses.asdict(Mesh()), jax.devices()[:1])


def abstract(**sizes) -> AbstractMesh:
    """A mesh of devices that nobody has: layouts can be worked out for it."""
    named = {**ONE, **sizes}
    return AbstractMesh(tuple(named.values()), tuple(named), axis_types=(AxisType.Auto,) * len(named))


# -- the mesh ----------------------------------------------------------------------------------------------------------


def test_axes_are_the_config_s():
    assert tuple(dataclasses.asdict(Mesh())) == AXES
    assert {axis for entry in RULES.values() for axis in entry} <= set(AXES)


def test_the_rest_of_the_devices():
    made = make_mesh({**ONE, "fsdp": -1}, jax.devices()[:1])
    assert dict(made.shape) == ONE
    assert made.axis_types == (AxisType.Auto,) * len(AXES)  # under explicit or manual axes the constraints vanish


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 2}, r"does not fit 1 device\(s\)"),
        ({"data": -1, "tensor": 3}, r"does not fit 1 device\(s\)"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
        ({"data": 0}, "sizes are positive"),
        ({"data": -2}, "sizes are positive"),
    ],
)
def test_meshes_that_do_not_fit(sizes, words):
    with pytest.raises(UserError, match=words):
        make_mesh({**ONE, **sizes}, jax.devices()[:1])


# -- parameters --------------------------------------------------------------------------------------------------------


def test_spec():
    assert spec(("layers", "embed", "heads", "head")) == PartitionSpec(("stage",), ("fsdp",), ("tensor",), None)
    assert spec(("batch", "length", None)) == PartitionSpec(("data", "stage", "fsdp", "expert"), ("context",), None)
    assert spec(()) == PartitionSpec()


def boxes(**changes):
    return jax.eval_shape(Model(tiny(**changes)).init, jax.random.key(0), np.zeros((1, 16), np.int32))["params"]


def layout(tree, made) -> dict:
    found = jax.tree_util.tree_leaves_with_path(shardings(tree, made))
    return {jax.tree_util.keystr(p, simple=True, separator="/"): s.spec for p, s in found}


def test_parameters_lie_by_their_names():
    found = layout(boxes(heads=4, kv_heads=2, head=3, pad_vocab=2), abstract(tensor=2, fsdp=2, data=2))
    layers, attention = "stack/layers", "stack/layers/attention"
    f, t, s = ("fsdp",), ("tensor",), ("stage",)
    expected = {
        "embed/table": PartitionSpec(t, f),
        "input/places/table": PartitionSpec(None, f),
        f"{attention}/query/kernel": PartitionSpec(s, f, t, None),
        f"{attention}/key/kernel": PartitionSpec(s, f, t, None),
        f"{attention}/query/bias": PartitionSpec(s, t, None),
        f"{attention}/out/kernel": PartitionSpec(s, t, None, f),
        f"{layers}/mlp/up/kernel": PartitionSpec(s, f, t),
        f"{layers}/mlp/down/kernel": PartitionSpec(s, t, f),
        f"{layers}/norm0/scale": PartitionSpec(s, f),
        "stack/norm/bias": PartitionSpec(f),
    }
    for name, value in expected.items():
        assert found[name] == value, name


def test_few_key_heads_are_held_whole():
    found = layout(boxes(heads=4, kv_heads=2, head=3, pad_vocab=4), abstract(tensor=4))
    assert found["stack/layers/attention/key/kernel"] == PartitionSpec(("stage",), ("fsdp",), None, None)
    assert found["stack/layers/attention/query/kernel"] == PartitionSpec(("stage",), ("fsdp",), ("tensor",), None)


@pytest.mark.parametrize(
    ("changes", "sizes", "words"),
    [
        ({}, {"fsdp": 5}, r"the embed axis of .*embed.*table.* has size 12.* the 5 devices of fsdp"),
        ({}, {"tensor": 2}, r"the vocab axis of .* size 29.*objective\.model\.pad_vocab to a multiple"),
        ({"pad_vocab": 2}, {"tensor": 2}, r"the heads axis of .* size 3.* the 2 devices of tensor"),
    ],
)
def test_axes_that_do_not_divide(changes, sizes, words):
    with pytest.raises(UserError, match=words):
        shardings(boxes(**changes), abstract(**sizes))


def test_names_go_on_and_come_off():
    tree = {"a": Named(jnp.ones((2, 3)), ("embed", "mlp")), "b": jnp.ones(3)}
    assert axes_of(tree) == {"a": ("embed", "mlp"), "b": ()}
    assert unbox(tree)["a"].shape == (2, 3)
    assert shardings({"b": jnp.ones(3)}, abstract(data=2))["b"].spec == PartitionSpec()


def test_stacking_adds_the_layers_axis():
    named = Named(jnp.ones((2, 3)), ("embed", "mlp"))
    params = {"partition_name": "layers"}
    assert named.add_axis(0, params).axes == ("layers", "embed", "mlp")
    assert named.add_axis(0, params).remove_axis(0, params).axes == ("embed", "mlp")


def test_every_axis_has_a_known_name():
    """A name that the table lacks is held whole silently: this is the list of those that are meant to be."""
    names = {a for axes in jax.tree.leaves(axes_of(boxes(qk_norm=True)), is_leaf=lambda x: isinstance(x, tuple)) for a in axes}
    assert names <= {*RULES, "head", "position", None}


# -- activations -------------------------------------------------------------------------------------------------------


def constraints(jaxpr) -> list[PartitionSpec]:
    """The specs of all sharding constraints of a program, those inside loops and calls too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sharding_constraint":
            found.append(equation.params["sharding"].spec)
        for inner in jaxprs_in_params(equation.params):
            found += constraints(inner)
    return found


def program(**changes):
    config = tiny(**changes)
    params = draw(config)
    return jax.make_jaxpr(lambda t: Model(config).apply({"params": params}, t)[0])(np.zeros((2, 16), np.int32)).jaxpr


@pytest.mark.parametrize("remat", ["none", "full"])
def test_constraints_are_in_the_program(remat):
    """Trap 1: under `with mesh:` they vanish without a word."""
    with jax.set_mesh(mesh()):
        found = constraints(program(remat=remat))
    assert spec(("batch", "length", None)) in found  # after the embedding, and within sub-layers
    assert found.count(spec(("batch", "residual", None))) >= 2  # between them
    heads = [sorted(axes for axes in ("batch", "length", "heads") if spec((axes,))[0] in f) for f in found if len(f) == 4]
    assert ["batch", "heads", "length"] in heads  # queries
    assert ["batch", "heads"] in heads  # keys and values: gathered along the row
    assert spec((None, None)) in found  # the table, for the look-up


def test_no_mesh_no_constraints():
    assert constraints(program()) == []
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", None) is x


def test_pieces():
    assert sharding.pieces("batch", "length") == (1, 1)
    with jax.sharding.use_abstract_mesh(abstract(data=2, expert=3, context=4)):
        assert sharding.pieces("batch", "length", "vocab") == (6, 4, 1)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_place():
    batch = {"tokens": np.arange(12, dtype=np.int32).reshape(3, 4), "weight": np.ones(3, np.float32)}
    placed = place(batch, mesh(), 3)
    assert placed["tokens"].sharding.spec == PartitionSpec(("data", "stage", "fsdp", "expert"), ("context",))
    assert placed["weight"].sharding.spec == PartitionSpec(("data", "stage", "fsdp", "expert"))
    for name, value in batch.items():
        np.testing.assert_array_equal(placed[name], value)


def test_rows_are_padded_to_the_context_axis():
    """With segment 0 and weight 0, on each side by its own length; arrays of other lengths stay."""
    batch = {"tokens": np.ones((2, 5), np.int32), "segments": np.ones((2, 5), np.int32), "weights": np.ones((2, 5))}
    batch |= {"source": np.ones((2, 7), np.int32), "source_segments": np.ones((2, 7), np.int32), "places": np.ones((2, 2))}
    found = sharding.widened(batch, 4)
    assert {name: x.shape[1] for name, x in found.items()} == {
        "tokens": 8, "segments": 8, "weights": 8, "source": 8, "source_segments": 8, "places": 2,
    }  # fmt: skip
    assert all((x[:, :n] == 1).all() and not x[:, n:].any() for x, n in zip(found.values(), (5, 5, 5, 7, 7, 2)))
    assert sharding.widened({"tokens": batch["tokens"]}, 4)["tokens"].shape == (2, 5)  # nothing would mask its padding


def test_length_that_does_not_divide():
    with pytest.raises(UserError, match=r"mesh\.context=3 does not divide the row length 4"):
        place({"tokens": np.zeros((2, 4), np.int32)}, abstract(context=3), 2)


def test_rows_of_this_process():
    assert sharding.local_rows(mesh(), 5) == (0, 5)
    with pytest.raises(UserError, match="batch=5 does not divide among the 4 devices of the axes data, stage, fsdp, expert"):
        sharding.local_rows(SimpleNamespace(shape={**ONE, "data": 2, "fsdp": 2}), 5)
