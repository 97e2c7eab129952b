"""Mixtures of experts: transformers' Mixtral and its balance loss, both dispatches, capacity, padding, meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config, Mesh, Optimizer
from lm.errors import UserError
from lm.models import auxiliary, mixture
from lm.models.experts import Experts
from lm.models.mixture import MixtureOfExperts, add_losses, statistics
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.sharding import make_mesh, place, unbox
from lm.train import compile_step, numbers_of
from lm.training.state import abstract_state, initialise
from tests.marks import quick
from tests.test_mesh import ONE, ROWS, abstract_batch, rows, same

MIXTRAL = Transformer(
    vocab=32, context=64, width=16, depth=2, heads=4, kv_heads=2, mlp=24, activation="swiglu", norm="rms", eps=1e-5,
    positions="rotary", bias=False, tied=False, experts=Experts(count=4, active=2),
)  # fmt: skip


def drawn(config, seed=0):
    params = unbox(jax.jit(Model(config).init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"])
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return tree.unflatten([(0.3 * rng.standard_normal(x.shape)).astype(np.float32) for x in leaves])


def test_is_mixtral():
    """Logits and the balance loss, over a batch with padding, of a network whose weights are set to ours."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, rope_theta=10_000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    theirs, params = transformers.MixtralForCausalLM(config).eval(), drawn(MIXTRAL)
    layers, state = params["stack"]["layers"], {}
    state["model.embed_tokens.weight"] = params["embed"]["table"]
    state["lm_head.weight"] = params["output"]["table"]
    state["model.norm.weight"] = params["stack"]["norm"]["scale"]
    for i in range(2):
        at, mlp, attention = f"model.layers.{i}.", layers["mlp"], layers["attention"]
        for name in "query", "key", "value":
            state[f"{at}self_attn.{name[0]}_proj.weight"] = attention[name]["kernel"][i].reshape(16, -1).T
        state[f"{at}self_attn.o_proj.weight"] = attention["out"]["kernel"][i].reshape(-1, 16).T
        state[f"{at}mlp.gate.weight"] = mlp["router_kernel"][i].T
        both = np.concatenate([mlp["gate_kernel"][i], mlp["up_kernel"][i]], -1)
        state[f"{at}mlp.experts.gate_up_proj"] = both.swapaxes(1, 2)
        state[f"{at}mlp.experts.down_proj"] = mlp["down_kernel"][i].swapaxes(1, 2)
        state[f"{at}input_layernorm.weight"] = layers["norm0"]["scale"][i]
        state[f"{at}post_attention_layernorm.weight"] = layers["norm1"]["scale"][i]
    theirs.load_state_dict({name: torch.tensor(np.asarray(x)) for name, x in state.items()})
    ids = np.random.default_rng(1).integers(0, 32, (3, 11))
    mask = np.arange(11) < np.array([[11], [7], [9]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)), output_router_logits=True)
    variables, segments = {"params": params}, mask.astype(np.int32)
    with auxiliary.collected() as extras:
        h, _ = Model(MIXTRAL).apply(variables, ids, segments_BT=segments)
    logits = Model(MIXTRAL).apply(variables, method="head").logits(h)
    np.testing.assert_allclose(np.asarray(logits)[mask], expected.logits.numpy()[mask], atol=2e-5)
    found = {name: float(value) for name, _, value in extras}
    assert found["balance"] == pytest.approx(float(expected.aux_loss), rel=1e-5)
    assert found["load"] >= 1


@pytest.mark.parametrize(("real", "expected"), [([1, 1, 1], 2.199427), ([1, 1, 0], 2.0)])
def test_losses_of_known_logits(real, expected):
    """transformers' load_balancing_loss_func, and the mean squared log of the partition function."""
    logits = jnp.asarray([[[2.0, 1, 0, -1], [0, 0.5, 1, 1.5], [1, 1, -1, 0]]])
    probabilities = jax.nn.softmax(logits, -1)
    found = statistics(logits, probabilities, jax.lax.top_k(probabilities, 2)[1], jnp.asarray([real], bool))
    with auxiliary.collected() as extras:
        add_losses(Experts(count=4, active=2, z_loss=1e-3), jax.tree.map(lambda x: x[None], found))
    values = {name: float(value) for name, _, value in extras}
    assert values["balance"] == pytest.approx(expected, abs=1e-5)
    if all(real):
        assert values["router_z"] == pytest.approx(4.954513, abs=1e-5)


def layer(experts, x, real=None, seed=0):
    config = dataclasses.replace(MIXTRAL, experts=experts)
    module = MixtureOfExperts(config)
    params = unbox(module.init(jax.random.key(seed), x, real)["params"])
    params = jax.tree.map(lambda p: 10 * p, params)
    return module, params


def test_a_wide_capacity_is_dropless():
    """Values and gradients of both dispatches, where no token is left out."""
    x = jax.random.normal(jax.random.key(1), (2, 9, 16))
    module, params = layer(Experts(count=4, active=2), x)
    capacity = MixtureOfExperts(dataclasses.replace(module.config, experts=Experts(count=4, active=2, capacity=4.0)))

    def value(module, params, x):
        return (module.apply({"params": params}, x, None)[0] ** 2).sum()

    mine, theirs = (jax.jit(jax.value_and_grad(value, (1, 2)), static_argnums=0)(m, params, x) for m in (module, capacity))
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_a_full_expert_passes_tokens_by():
    """Equal tokens choose one expert: of six real ones the first two have a place, whatever the padding before them."""
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (16,)), (1, 8, 16))
    real = jnp.asarray([[False, True, True, True, True, True, True, False]])
    module, params = layer(Experts(count=4, active=1, capacity=1.0, weights="softmax"), x, real)
    y = np.abs(module.apply({"params": params}, x, real)[0][0]).sum(-1)
    np.testing.assert_array_equal(y > 0, [False, True, True, False, False, False, False, False])


def test_blocks_are_ragged_products(monkeypatch):
    """Values and gradients of the CPU's form, with an empty group, one of a whole block, and rows behind the last group."""
    monkeypatch.setattr(mixture, "ROWS", 8)
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((45, 6), (4, 6, 5))))
    sizes = jnp.asarray([11, 0, 8, 20], jnp.int32)
    real = (jnp.arange(45) < 39)[:, None]

    def value(product, x, kernel):
        return (jnp.where(real, product(x, kernel, sizes), 0) ** 2).sum()

    for mine, theirs in zip(*(jax.grad(value, (1, 2))(f, x, kernel) for f in (mixture.in_blocks, jax.lax.ragged_dot))):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mixture.in_blocks(x, kernel, sizes)[39:], 0)


@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_rows_are_their_own(capacity):
    """A row alone is the row in its batch, with either dispatch."""
    x = jax.random.normal(jax.random.key(1), (3, 8, 16))
    module, params = layer(Experts(count=4, active=2, capacity=capacity), x)
    whole = module.apply({"params": params}, x, None)[0]
    np.testing.assert_allclose(module.apply({"params": params}, x[1:2], None)[0], whole[1:2], rtol=1e-5, atol=1e-6)


def trained(mesh, capacity, steps=2):
    experts = Experts(count=4, active=2, capacity=capacity, z_loss=1e-3)
    model = dataclasses.replace(MIXTRAL, vocab=96, width=32, mlp=64, kv_heads=4, experts=experts)
    config = Config(objective=Causal(model=model), optimizer=Optimizer(name="sgd", lr=0.5), mesh=mesh, batch=ROWS)
    found = make_mesh(dataclasses.asdict(mesh), jax.devices()[:1] if mesh == ONE else jax.devices())
    with jax.set_mesh(found):
        batch = abstract_batch(place(rows(0), found, ROWS))
        abstract = abstract_state(config, batch, found)
        state, step, losses = initialise(config, batch, abstract), compile_step(config, abstract, batch), []
        for i in range(steps):
            state, sums = step(state, place(rows(i), found, ROWS), numbers_of(config))
            losses.append([float(sums[name][0] / sums[name][1]) for name in ("loss", "balance", "router_z", "load")])
        return losses, jax.device_get(state.params), step.as_text()


MESHES = [
    (0.0, Mesh(data=2, expert=4)),
    (0.0, Mesh(data=1, fsdp=2, tensor=2, expert=2)),
    (2.0, Mesh(data=2, expert=4)),
    (0.0, Mesh(data=2, context=2, expert=2)),
]


@pytest.mark.parametrize(("capacity", "mesh"), quick(MESHES, MESHES[1:2]), ids=str)
def test_experts_over_a_mesh(capacity, mesh):
    """Losses and parameters of eight devices are those of one; with a capacity rows travel by all-to-all."""
    losses, params, program = trained(mesh, capacity)
    expected, expected_params, _ = trained(ONE, capacity)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    same(params, expected_params)
    assert ("all-to-all" in program) == bool(capacity) or mesh.context > 1


def test_mistakes():
    for changes, words in (
        ({"count": 1}, "one feed-forward"),
        ({"count": 2, "active": 3}, "from 1 to"),
        ({"active": 3}, "no effect"),
    ):
        with pytest.raises(UserError, match=words):
            Experts(**changes)
    with pytest.raises(UserError, match="no dropout inside"):
        Transformer(experts=Experts(count=4), mlp_dropout=0.1)
