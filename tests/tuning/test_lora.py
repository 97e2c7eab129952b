"""Low-rank factors: the formula in torch, the first step, what is trained, merging, and everything that reads a model."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config, Data, Optimizer, load
from lm.convert.convert import load as load_folder
from lm.convert.convert import save
from lm.convert.runs import export_run, write_run
from lm.data.corpus.prepare import prepare
from lm.data.tokenizer.tokenizer import Bytes
from lm.decode.generate import generate
from lm.decode.strategies import AncestralSampling
from lm.errors import UserError
from lm.models import presets
from lm.models.layers import Linear
from lm.models.lora import Lora
from lm.models.merge import merge, merged
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import resolve, training_batches
from lm.objectives.causal import Causal
from lm.objectives.classify import Classify
from lm.sharding import AXES, make_mesh, place, shardings, unbox
from lm.start.begin import begin
from lm.train import gradients
from lm.training import parameters
from lm.training.state import abstract_params, abstract_state, chain, initialise
from tests.marks import quick
from tests.models.reference import tiny
from tests.test_optimizer import batch, one_device

EVERYWHERE = Lora(rank=3, alpha=6.0, targets=("attention", "mlp"))
MODEL = tiny(depth=2, heads=2, lora=EVERYWHERE)


def noisy(tree, seed: int = 1, spread: float = 0.2):
    """No factor is zero any more."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + spread * rng.normal(size=x.shape), jnp.float32), tree)


@functools.cache
def params(model: Transformer = MODEL, seed: int = 0):
    return noisy(unbox(Model(model).init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32))["params"]))


def states(model, params, tokens=None):
    tokens = batch()["tokens"] if tokens is None else tokens
    return jax.jit(lambda params: Model(model).apply({"params": params}, tokens)[0])(params)


@pytest.mark.parametrize("inputs", [1, 2])
def test_the_formula_is_torchs(inputs):
    """result = x W^T + b + (x A^T) B^T alpha / r, and its gradients, as peft's Linear computes them."""
    torch = pytest.importorskip("torch")
    shape, axes = ((6, 2, 4), ("embed", "heads", "head")) if inputs == 1 else ((2, 4, 6), ("heads", "head", "embed"))
    layer = Linear(shape, axes, inputs=inputs, lora=Lora(rank=3, alpha=12.0, targets=("",)))
    x = np.random.default_rng(0).normal(size=(5, 7, *shape[:inputs])).astype(np.float32)
    tree = noisy(unbox(layer.init(jax.random.key(0), x)["params"]))
    grads = jax.grad(lambda p: jnp.square(layer.apply({"params": p}, x)).sum())(tree)
    size = int(np.prod(shape[:inputs]))
    mine = {"kernel": (size, -1), "bias": (-1,), "lora_a": (size, 3), "lora_b": (3, -1)}
    w, b, a, up = (torch.tensor(np.asarray(tree[n]).reshape(s), requires_grad=True) for n, s in mine.items())
    z = torch.tensor(x.reshape(35, size))
    apply = torch.nn.functional.linear
    found = apply(z, w.T, b) + apply(apply(z, a.T), up.T) * (12 / 3)
    np.testing.assert_allclose(layer.apply({"params": tree}, x).reshape(35, -1), found.detach(), rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    for (name, shape), theirs in zip(mine.items(), (w, b, a, up)):
        np.testing.assert_allclose(grads[name].reshape(shape), theirs.grad, rtol=1e-4, atol=1e-2, err_msg=name)


def test_the_first_step_is_the_plain_models():
    """B is 0, A is uniform within 1 / sqrt(inputs), and the states are those of the network without them, bit for bit."""
    plain = dataclasses.replace(MODEL, lora=Lora())
    tuned = unbox(Model(MODEL).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    ours = parameters.flat(tuned)
    bare = parameters.nested({path: x for path, x in ours.items() if "lora" not in path})
    factors = [path for path in ours if "lora" in path]
    assert len(factors) == 12
    assert all(bool(np.any(ours[path])) == path.endswith("lora_a") for path in factors)
    a = ours["stack/layers/mlp/down/lora_a"]
    assert a.shape == (2, 20, 3)
    assert 0.9 < float(jnp.abs(a).max()) * 20**0.5 <= 1
    np.testing.assert_array_equal(states(MODEL, tuned), states(plain, bare))


def counted(objective, batch, **found) -> float:
    boxed = unbox(abstract_params(objective, batch))
    moving, still = parameters.split(parameters.Groups(**found), boxed)
    sizes = [sum(int(np.prod(x.shape)) for x in part.values()) for part in (moving, still)]
    return sizes[0] / sum(sizes)


def test_it_trains_little_of_a_published_network():
    """GPT-2 with rank 8 on queries and values: 2 x 8 x (768 + 768) x 12 = 294,912 of 124.4 M, as peft prints for q and v."""
    model = dataclasses.replace(presets.GPT2_SMALL, lora=Lora(rank=8))
    share = counted(Causal(model=model), batch())
    assert share == pytest.approx(294_912 / (124_439_808 + 294_912), rel=1e-6)
    assert counted(Causal(model=model), batch(), train=("lora_a",)) == pytest.approx(share / 2)


def test_the_head_of_a_task_is_trained_too():
    config, _, rows = labelled("")
    moving, still = parameters.split(config.optimizer.groups, unbox(abstract_params(config.objective, rows)))
    assert {path for path in moving if "lora" not in path} == {
        f"{name}/{leaf}" for name in ("classifier", "pooler/dense") for leaf in ("kernel", "bias")
    }
    assert all("lora" not in path for path in still)


def labelled(trunk: str, dropout: float = 0.1):
    """A classifier with factors: resolved config, corpus and batch."""
    config = load("tests/configs/tiny_classify.py" + (f":trunk={trunk}" if trunk else ""))
    lora, model = Lora(rank=2, targets=("attention", "mlp"), dropout=dropout), config.objective.model
    if trunk == "pair":
        sides = {side: dataclasses.replace(getattr(model, side), lora=lora) for side in ("encoder", "decoder")}
        model = dataclasses.replace(model, **sides)
    else:
        model = dataclasses.replace(model, lora=lora)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, model=model))
    config, corpus = resolve(config, prepare(config.data))
    return config, corpus, training_batches(config, corpus)[0]


def taken(config, tree, rows):
    keys_B = jax.random.split(jax.random.key(2), config.batch)
    return jax.jit(lambda *args: gradients(config, *args))(tree, rows, None, keys_B)[:2]


@pytest.mark.parametrize("trunk", quick(["pair", "encoder", "xlnet"], ["pair"]))
@pytest.mark.slow
def test_accumulation_and_mesh_change_nothing(trunk):
    """Dropout before the factors has one key a row; factors are cut over the mesh as their matrix is."""
    config, _, rows = labelled(trunk, dropout=0.3)
    boxed = jax.eval_shape(config.objective.init, jax.random.key(0), rows)
    tree = noisy(unbox(jax.jit(config.objective.init)(jax.random.key(0), rows)))
    expected, sums = jax.device_get(taken(config, tree, rows))
    mesh = make_mesh({**dict.fromkeys(AXES, 1), "data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        cut = jax.device_put(tree, shardings(boxed, mesh))
        grads, found = jax.device_get(taken(dataclasses.replace(config, micro_batches=2), cut, place(rows, mesh, config.batch)))
    np.testing.assert_allclose(found["loss"], sums["loss"], rtol=1e-5)
    for (path, a), b in zip(parameters.flat(grads).items(), parameters.flat(expected).values()):
        assert np.linalg.norm(a - b) <= 1e-4 * max(np.linalg.norm(b), 1e-2), path
    factors = {p: x for p, x in parameters.flat(expected).items() if "lora" in p}
    assert factors
    assert all(np.any(x) for p, x in factors.items() if "key" not in p)


def test_dropout_is_on_what_the_factors_read():
    """Without factors that count it changes nothing; with them it does, alike for the same key."""
    model = dataclasses.replace(MODEL, lora=dataclasses.replace(EVERYWHERE, dropout=0.5))
    keys = jax.random.split(jax.random.key(0), 4)

    def run(tree, keys_B):
        return Model(model).apply({"params": tree}, batch()["tokens"], keys_B=keys_B)[0]

    drawn = unbox(Model(model).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    np.testing.assert_array_equal(run(drawn, keys), run(drawn, None))
    np.testing.assert_array_equal(run(params(), keys), run(params(), keys))
    assert float(jnp.abs(run(params(), keys) - run(params(), None)).max()) > 0.01


# -- merging -----------------------------------------------------------------------------------------------------------


def test_merging_is_the_formula_bit_by_bit():
    plain, found = merged(MODEL, params())
    assert plain == dataclasses.replace(MODEL, lora=Lora())
    ours, theirs = parameters.flat(params()), parameters.flat(found)
    assert not [path for path in theirs if "lora" in path]
    hit = 0
    for path, x in theirs.items():
        stem = path.removesuffix("kernel")
        expected = np.asarray(ours[path])
        if f"{stem}lora_a" in ours:
            layers = []
            for i in range(2):
                a, b = (np.asarray(ours[f"{stem}lora_{n}"][i]) for n in "ab")
                layers.append(expected[i] + np.float32(2.0) * (a.reshape(-1, 3) @ b.reshape(3, -1)).reshape(expected[i].shape))
            expected, hit = np.stack(layers), hit + 1
        assert np.array_equal(np.asarray(x), expected), path
    assert hit == 6
    np.testing.assert_allclose(states(plain, found), states(MODEL, params()), atol=2e-5)


def test_shared_layers_merge_too():
    model = dataclasses.replace(MODEL, share=True)
    plain, found = merged(model, params(model))
    np.testing.assert_allclose(states(plain, found), states(model, params(model)), atol=2e-5)


def run_of(model, workdir: Path, **changes) -> tuple[Config, dict]:
    """Write a run of random parameters, bytes its tokens."""
    tokenizer = Bytes().build(lambda: ())
    objective = Causal(model=dataclasses.replace(model, vocab=0)).resolve(tokenizer)
    config = Config(objective=objective, data=Data(tokenizer=Bytes()), batch=4, **changes)
    tree = params(objective.model)
    write_run(config, tree, tokenizer, workdir)
    return config, tree


def test_an_exported_run_is_merged(tmp_path):
    """The folder read again: bit for bit what merging gives; transformers computes what the run with factors does."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config, tree = run_of(MODEL, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    expected, found = (parameters.flat(x) for x in (merge(EVERYWHERE, tree), load_folder(tmp_path / "out").params))
    assert expected.keys() == found.keys()
    for path in expected:
        assert np.array_equal(expected[path], found[path]), path
    tokens = np.random.default_rng(0).integers(0, 256, (2, 12)).astype(np.int32)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")(torch.tensor(tokens)).logits.detach()
    model = config.objective.model
    head = Model(model).apply({"params": tree}, method="head")
    np.testing.assert_allclose(head.logits(states(model, tree, tokens)), theirs, atol=1e-3)


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_a_start_gives_the_trunk_and_the_factors_are_drawn(kind, tmp_path):
    plain = dataclasses.replace(MODEL, lora=Lora())
    config, tree = run_of(plain, tmp_path / "run")
    if kind == "folder":
        save(config.objective, tree, Bytes().build(lambda: ()), tmp_path / "folder", "card")
    model = dataclasses.replace(config.objective.model, lora=EVERYWHERE)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, model=model))
    config = dataclasses.replace(config, start=str(tmp_path / kind))
    with jax.set_mesh(one_device()):
        abstract = abstract_state(config, batch(), one_device())
        state, lines = begin(config, initialise(config, batch(), abstract), abstract)
    found = parameters.flat(state.params)
    for path, x in parameters.flat(tree).items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
    assert not np.any(found["stack/layers/mlp/up/lora_b"])
    assert np.any(found["stack/layers/mlp/up/lora_a"])
    assert "lora_a" in "\n".join(lines)


def test_a_tuned_start_is_not_cut_off_silently(tmp_path):
    config, _ = run_of(MODEL, tmp_path / "run")
    model = dataclasses.replace(config.objective.model, lora=Lora())
    config = dataclasses.replace(config, objective=Causal(model=model), start=str(tmp_path / "run"))
    with jax.set_mesh(one_device()):
        abstract = abstract_state(config, batch(), one_device())
        with pytest.raises(UserError, match="tuned with LoRA"):
            begin(config, initialise(config, batch(), abstract), abstract)


@pytest.mark.parametrize("rows", [1, 3])
def test_decoding_is_the_merged_models(rows):
    tokenizer = Bytes().build(lambda: ())
    objective = Causal(model=dataclasses.replace(MODEL, vocab=0)).resolve(tokenizer)
    plain, found = merged(objective.model, params(objective.model))
    how = {"max_new_tokens": 6, "strategy": AncestralSampling(top_k=1), "seed": 0}
    texts = ["ab", "c", "xyz"][:rows]
    tuned = generate(objective, params(objective.model), tokenizer, texts, **how)
    bare = generate(dataclasses.replace(objective, model=plain), found, tokenizer, texts, **how)
    assert [list(s.tokens) for s in tuned] == [list(s.tokens) for s in bare]


@pytest.mark.parametrize("name", quick(["adamw", "muon", "adafactor", "lamb"], ["adamw", "muon"]))
def test_factors_decay_and_are_matrices(name):
    boxed = abstract_params(Causal(model=MODEL), batch())
    optimizer = chain(Config(objective=Causal(model=MODEL), optimizer=Optimizer(name=name, decay=0.5)), boxed)
    zeros = jax.tree.map(jnp.zeros_like, params())
    updates, _ = optimizer.update(zeros, optimizer.init(params()), params())
    for path, update in parameters.flat(updates).items():
        moves = "lora" in path and not (name == "lamb" and not np.any(update))
        assert bool(np.any(update)) == moves, path
        if moves and name in ("adamw", "muon", "adafactor"):
            np.testing.assert_allclose(update, -0.5 * parameters.flat(params())[path], atol=1e-6)


@pytest.mark.parametrize("targets", [("querry",), ("query", "embed")])
def test_a_target_that_is_not_there_is_an_error(targets):
    model = dataclasses.replace(MODEL, lora=Lora(rank=2, targets=targets))
    boxed = abstract_params(Causal(model=model), batch())
    with pytest.raises(UserError, match=f"'{targets[-1]}'"):
        chain(Config(objective=Causal(model=model)), boxed)


def test_values_are_checked():
    with pytest.raises(UserError, match="dropout"):
        Lora(rank=2, dropout=1.5)
    with pytest.raises(UserError, match="regular expression"):
        Lora(rank=2, targets=("(",))
    assert isinstance(load("tests/configs/tiny_classify.py").objective, Classify)
