"""Groups of parameters: which move, how fast, from when on, against the formulas of ELECTRA's code and of ULMFiT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import Config, Optimizer, Schedule, load
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.objectives.base import resolve, training_batches
from lm.objectives.causal import Causal
from lm.sharding import axes_of, unbox
from lm.train import gradients, train_step
from lm.training import parameters
from lm.training.parameters import Groups
from lm.training.state import abstract_params, abstract_state, chain, create
from tests.marks import quick
from tests.models.reference import draw, tiny
from tests.test_optimizer import batch, one_device

DEPTH = 3
MODEL = tiny(depth=DEPTH)
BOXED = abstract_params(Causal(model=MODEL), batch())
HEAD = ("embed", None)


def shapes(extra: bool = True) -> dict:
    """A GPT's parameters and a classifier's, as path -> (shape, axes)."""
    axes = parameters.flat(axes_of(BOXED))
    found = {path: (x.shape, axes[path]) for path, x in parameters.flat(unbox(BOXED)).items()}
    return found | ({"classifier/kernel": ((12, 2), HEAD), "pooler/dense/kernel": ((12, 12), HEAD)} if extra else {})


def electra(path: str, layer: int, decay: float) -> float:
    """decay^(L + 2 - depth), depth 0 for embeddings, i + 1 for layer i, L + 2 for the task: `_get_layer_lrs` of ELECTRA."""
    depth = DEPTH + 2
    if path.startswith(("embed/", "input/")):
        depth = 0
    if "/layers/" in path:
        depth = layer + 1
    return decay ** (DEPTH + 2 - depth)


def test_layer_decay_is_electras():
    found = parameters.factors(Groups(layer_decay=0.8), shapes())
    for path, factor in found.items():
        if path.startswith("stack/norm"):
            assert factor == pytest.approx(0.8)
            continue
        for layer in range(DEPTH):
            mine = factor.reshape(-1)[layer] if "/layers/" in path else factor
            assert mine == pytest.approx(electra(path, layer, 0.8)), path
    kernel = found["stack/layers/attention/query/kernel"]
    assert kernel.shape == (DEPTH, 1, 1, 1)
    np.testing.assert_allclose(kernel[:, 0, 0, 0], [0.8**4, 0.8**3, 0.8**2])


def test_rates_without_a_gap_are_ulmfits():
    found = parameters.factors(Groups(layer_decay=1 / 2.6, layer_gap=0, head=5.0, rates=("attention=2", "query=3")), shapes())
    assert found["classifier/kernel"] == pytest.approx(5.0)
    np.testing.assert_allclose(found["stack/layers/mlp/up/kernel"].reshape(-1), [2.6**-3, 2.6**-2, 2.6**-1], rtol=1e-6)
    np.testing.assert_allclose(found["stack/layers/attention/key/kernel"].reshape(-1)[-1], 2 / 2.6, rtol=1e-6)
    np.testing.assert_allclose(found["stack/layers/attention/query/kernel"].reshape(-1)[-1], 6 / 2.6, rtol=1e-6)
    np.testing.assert_allclose(found["embed/table"], 2.6**-4, rtol=1e-6)


def test_a_decoder_lies_on_its_encoder():
    layered = ("layers", "embed")
    tree = {"embed/table": ((9, 4), ("vocab", "embed")), "classifier/bias": ((2,), (None,))}
    for name, depth in (("encoder", 2), ("decoder", 3)):
        tree |= {f"{name}/layers/norm0/scale": ((depth, 4), layered), f"{name}/norm/scale": ((4,), ("embed",))}
        tree |= {f"{name}/buckets": ((32, 2), (None, "heads"))}
    found = parameters.heights(tree)
    assert found["embed/table"] == 6
    assert found["encoder/layers/norm0/scale"].tolist() == [5, 4]
    assert found["decoder/layers/norm0/scale"].tolist() == [3, 2, 1]
    others = ("encoder/norm/scale", "encoder/buckets", "decoder/norm/scale", "decoder/buckets")
    assert [int(found[path]) for path in others] == [4, 5, 1, 3]
    assert found["classifier/bias"] == 0


def config(name: str = "adamw", decay: float = 0.1, clip: float = 1.0, **found) -> Config:
    optimizer = Optimizer(name=name, lr=0.1, decay=decay, clip=clip, groups=Groups(**found))
    return Config(objective=Causal(model=MODEL), optimizer=optimizer, batch=4, steps=20, schedule=Schedule())


def stepped(config: Config, steps: int = 1, parts: int = 1):
    """States from step 0 on, and the first step's sums."""
    config = dataclasses.replace(config, micro_batches=parts)
    optimizer = chain(config, BOXED)
    state = create(config, optimizer, jax.tree.map(jnp.asarray, draw(MODEL)))
    step, states = jax.jit(lambda state, batch: train_step(config, optimizer, state, batch)), [state]
    for _ in range(steps):
        state, sums = step(state, batch())
        states.append(state)
    return states, sums


def moved(before, after) -> dict[str, np.ndarray]:
    old, new = (parameters.flat(jax.device_get(state.params)) for state in (before, after))
    return {path: new[path] - old[path] for path in old}


RULES = ["adamw", "adamw_bert", "lamb", "adafactor", "lion", "muon", "sgd"]


@pytest.mark.parametrize("name", quick(RULES, ("adamw", "adafactor", "muon")))
def test_frozen_parameters_stay_and_cost_nothing(name):
    """BitFit (Ben Zaken et al. 2022): biases only, under every rule; slots are those of the biases alone."""
    found = config(name, train=("bias$",))
    states, _ = stepped(found, 2)
    for path, change in moved(states[0], states[-1]).items():
        if path.endswith("key/bias"):  # it shifts all scores of a query alike: its gradient is rounding
            continue
        assert bool(np.abs(change).max() > 0) == path.endswith("bias"), path
    paths = {path for path in parameters.flat(states[0].params) if path.endswith("bias")}
    biases = sum(parameters.flat(states[0].params)[path].size for path in paths)
    slots = sum(x.size for x in jax.tree.leaves(states[0].opt_state))
    assert slots <= 2 * biases + 8 + 2 * len(paths)
    abstract = abstract_state(found, batch(), one_device())
    assert jax.tree.map(lambda x: x.shape, abstract.opt_state) == jax.tree.map(lambda x: x.shape, states[0].opt_state)


@pytest.mark.parametrize("parts", [1, 4])
def test_clipping_and_norm_see_what_is_trained_only(parts):
    """As torch does: a frozen parameter has no gradient. Optax's own masks give the same update."""
    found = config("sgd", decay=0.0, freeze=("stack/layers", "input"))
    states, sums = stepped(found, 1, parts)
    params = states[0].params
    keys = jnp.stack([jax.random.key(0)] * 4)
    whole = gradients(config("sgd"), params, batch(), None, keys)[0]
    free = {p: x for p, x in parameters.flat(whole).items() if not p.startswith(("stack/layers", "input"))}
    norm = float(optax.tree.norm(free))
    assert float(sums["grad_norm"][0]) == pytest.approx(norm, rel=1e-5)
    change = moved(states[0], states[1])
    for path, gradient in free.items():
        np.testing.assert_allclose(change[path], -0.1 * gradient / max(norm, 1.0), atol=1e-6, err_msg=path)


def test_rates_scale_the_update_with_its_decay():
    """Not the gradient, which Adam would divide out again."""
    plain, scaled = (stepped(config(**kind))[0] for kind in ({}, {"layer_decay": 0.5, "rates": ("up/kernel=3",)}))
    factors = parameters.factors(Groups(layer_decay=0.5, rates=("up/kernel=3",)), shapes(extra=False))
    whole, shares = moved(*plain), moved(*scaled)
    for path in whole:
        np.testing.assert_allclose(shares[path], whole[path] * factors[path], atol=1e-6, err_msg=path)


def test_layers_join_from_the_top():
    """Every second step one more; their moments are warm when they do: the update is then Adam's of all steps so far."""
    states, _ = stepped(config(unfreeze=2, decay=0.0), 9)
    for step in range(9):
        change = moved(states[step], states[step + 1])
        kernel = np.abs(change["stack/layers/mlp/up/kernel"]).max((1, 2))
        assert [bool(k > 0) for k in kernel] == [step >= 6, step >= 4, step >= 2], step
        assert bool(np.abs(change["embed/table"]).max() > 0) == (step >= 8), step
        assert bool(np.abs(change["stack/norm/scale"]).max() > 0) == (step >= 2), step
    first = parameters.flat(jax.device_get(moved(states[2], states[3])))["stack/layers/mlp/up/kernel"][2]
    keys = jnp.stack([jax.random.key(0)] * 4)
    whole = gradients(config(), states[0].params, batch(), None, keys)[0]
    gradient, norm = np.asarray(whole["stack"]["layers"]["mlp"]["up"]["kernel"]), float(optax.tree.norm(whole))
    g = gradient[2] / max(norm, 1.0)  # a model without a head does not move in two steps: three equal gradients
    np.testing.assert_allclose(first, -0.1 * g / (np.abs(g) + 1e-8), atol=1e-5)


def test_defaults_change_nothing():
    plain = chain(config(), BOXED).init(jax.tree.map(jnp.asarray, draw(MODEL)))
    frozen = chain(config(train=("",)), BOXED).init(jax.tree.map(jnp.asarray, draw(MODEL)))
    assert jax.tree.structure(plain) == jax.tree.structure(frozen)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("classify", {"classifier", "pooler"}),
        ("tag", {"classifier", "crf"}),
        ("extract", {"answer"}),
        ("tasks", {"reviews", "tags", "answers"}),
    ],
)
def test_heads_are_found_by_one_word_whatever_their_names(task, names):
    config = load(f"tests/configs/tiny_{task}.py")
    config, corpus = resolve(config, prepare(config.data))
    params = parameters.flat(unbox(abstract_params(config.objective, training_batches(config, corpus)[0])))
    assert {path.split("/")[0] for path in parameters.trained(Groups(train=("heads",)), params)} == names
    biases = parameters.trained(Groups(train=("bias$", "heads")), params)
    assert any(path.endswith("layers/norm0/bias") for path in biases)
    assert not any(path.endswith("layers/norm0/scale") for path in biases)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"train": ("qeury",)}, "'qeury' matches no parameter"),
        ({"freeze": ("",)}, "every parameter is frozen"),
        ({"rates": ("crf=10",)}, "'crf' matches no parameter"),
    ],
)
def test_what_does_not_apply_is_an_error(found, word):
    with pytest.raises(UserError, match=word):
        chain(config(**found), BOXED)


@pytest.mark.parametrize(
    ("found", "word"),
    [({"rates": ("crf",)}, "PATTERN=FACTOR"), ({"train": ("(",)}, "regular"), ({"layer_decay": 1.5}, "layer_decay")],
)
def test_values_are_checked(found, word):
    with pytest.raises(UserError, match=word):
        Groups(**found)
