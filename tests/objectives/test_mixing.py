"""Mixes of layers, and of examples: against numpy and torch, and what must not depend on how rows are cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config, load
from lm.convert.convert import save
from lm.convert.runs import write_run
from lm.data.corpus.prepare import prepare
from lm.data.rows.templates import Frame
from lm.data.types import Example
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.model import Model
from lm.models.two_stream import XLNet
from lm.objectives import classify
from lm.objectives.base import resolve, training_batches
from lm.objectives.classify import Classify
from lm.objectives.finetune import network
from lm.objectives.finetune.network import Head, Rows
from lm.objectives.regularised import Regularised
from lm.objectives.tag import Tag
from lm.sharding import axes_of, place, unbox
from lm.start.begin import begin
from lm.train import gradients
from lm.training import parameters
from lm.training.state import abstract_state, initialise
from tests.marks import quick
from tests.objectives.labelled import model, words
from tests.test_optimizer import one_device
from tests.tuning.test_lora import noisy


@functools.cache
def subject(kind: str = "one", trunk_: str = "encoder", mix: bool = False, dropout: float = 0.0):
    """A tiny classifier of several texts a row, its batch and parameters."""
    config = load(f"tests/configs/tiny_classify.py:kind={kind},trunk={trunk_},dropout={dropout}")
    objective = dataclasses.replace(config.objective, rows=dataclasses.replace(config.objective.rows, mix=mix))
    config, corpus = resolve(dataclasses.replace(config, objective=objective), prepare(config.data))
    batch = training_batches(config, corpus)[0]
    return config, corpus, batch, noisy(unbox(config.objective.init(jax.random.key(0), batch)), spread=0.3)


# -- layers ------------------------------------------------------------------------------------------------------------


def sown(net, params, batch, causal: bool) -> np.ndarray:
    """States after the embeddings and after each layer, as the layers show them to who looks on: (L + 1, B, T, D)."""
    where = {"positions_BT": batch["positions"], "segments_BT": batch["segments"], "mutable": ["intermediates"]}
    if isinstance(net, EncoderDecoder):
        source = {f"source_{name}_BS": batch[f"source_{name}"] for name in ("positions", "segments")}
        call = Seq2Seq(network.bare(net)).apply({"params": params}, batch["source"], batch["tokens"], **where, **source)
    else:
        more = {"types_BT": batch.get("types"), "causal": causal}
        call = Model(network.bare(net)).apply({"params": params}, batch["tokens"], **where, **more)
    mine = call[1]["intermediates"]["decoder" if isinstance(net, EncoderDecoder) else "stack"]
    return np.concatenate([mine["input"][0][None], mine["layers"]["states"][0]])


@pytest.mark.parametrize("trunk_", quick(["encoder", "decoder", "pair"], ["decoder", "pair"]))
def test_the_mix_is_peters_sum(trunk_):
    config, _, batch, params = subject("one", trunk_, True)
    objective, causal = config.objective, trunk_ == "decoder"
    weights, scale = np.array([0.3, -1.0, 2.0]), 1.7
    params = {**params, "mix": {"weights": jnp.asarray(weights, jnp.float32), "scale": jnp.asarray(scale, jnp.float32)}}
    plain = {name: tree for name, tree in params.items() if name != "mix"}
    last = network.states(objective.model, plain, batch, None, causal)
    states = [*sown(objective.model, plain, batch, causal)[:-1], last]
    expected = scale * sum(e * np.asarray(h) for e, h in zip(np.exp(weights) / np.exp(weights).sum(), states))
    found = network.states(objective.model, params, batch, None, causal)
    real = batch["segments"] > 0
    np.testing.assert_allclose(found[real], expected[real], atol=2e-5)
    only = {**plain, "mix": {"weights": jnp.array([0.0, 0.0, 99.0]), "scale": jnp.ones(())}}
    np.testing.assert_allclose(network.states(objective.model, only, batch, None, causal)[real], last[real], atol=1e-5)


def test_a_mix_begins_as_the_mean_and_learns():
    config, _, batch, _ = subject("one", "encoder", True)
    objective = config.objective
    boxed = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert parameters.flat(axes_of(boxed))["mix/weights"] == (None,)
    params = unbox(objective.init(jax.random.key(0), batch))
    states = np.asarray(sown(objective.model, params, batch, False))
    states[-1] = network.states(objective.model, {k: x for k, x in params.items() if k != "mix"}, batch, None, False)
    found = network.states(objective.model, params, batch, None, False)
    np.testing.assert_allclose(found, states.mean(0), atol=1e-5)
    slopes = jax.jit(jax.grad(lambda p: objective.loss(p, batch, None, None)[0]["loss"][0]))(params)["mix"]
    assert np.abs(slopes["weights"]).min() > 0
    assert abs(slopes["scale"]) > 0
    assert parameters.is_task_head("mix/weights")
    assert parameters.is_task_head("mix/scale")


def test_a_mix_in_a_causal_network_sees_nothing_ahead():
    config, _, batch, params = subject("one", "decoder", True)
    row = {name: x[:1] for name, x in batch.items()}

    def states(table):
        return network.states(config.objective.model, {**params, "embed": {"table": table}}, row, None, True)[0]

    tokens = row["tokens"][0]
    place = next(t for t in range(3, len(tokens)) if (tokens[t + 1 : t + 3] != tokens[: t + 1, None]).all())
    slope = np.asarray(jax.grad(lambda table: states(table)[place].sum())(params["embed"]["table"]))
    assert np.abs(slope[tokens[place]]).max() > 0
    assert (slope[tokens[place + 1]] == 0).all()


def test_an_example_is_mixed_alike_alone_and_among_others():
    examples = [Example({"text": text, "label": label}, "here") for text, label in
                (("one two three", "a"), ("four", "b"), ("five six", "a"), ("seven eight nine ten", "b"))]  # fmt: skip
    objective = Classify(model=model(context=16), labels=("a", "b"), rows=Rows(row=32, mix=True))
    objective = dataclasses.replace(objective, frame=Frame(words(), "bert"))
    packed = objective.corrupt(None, {"examples": [(one, 0) for one in examples], "room": 4})
    alone = [objective.corrupt(None, {"examples": [(one, 0)], "room": 4}) for one in examples]
    params = noisy(unbox(objective.init(jax.random.key(0), {"tokens": packed["tokens"][None]})))

    @jax.jit
    def total(params, batch):
        return jax.value_and_grad(lambda p: objective.loss(p, batch, None, None)[0]["loss"][0])(params)

    batches = ({name: np.stack([row[name] for row in rows]) for name in packed} for rows in ([packed], alone))
    left, right = (total(params, batch) for batch in batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), left, right)


@pytest.mark.parametrize("name", quick(["tag", "extract", "choice", "rank"], ["tag", "choice"]))
def test_every_head_reads_the_mix(name):
    config = load(f"tests/configs/tiny_{name}.py")
    rows = dataclasses.replace(config.objective.rows, mix=True)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, rows=rows))
    config, corpus = resolve(config, prepare(config.data))
    batch = training_batches(config, corpus)[0]
    params = unbox(config.objective.init(jax.random.key(0), batch))
    slopes = jax.jit(jax.grad(lambda p: config.objective.loss(p, batch, None, None)[0]["loss"][0]))(params)["mix"]["weights"]
    assert slopes.shape == (config.objective.model.depth + 1,)
    assert np.abs(slopes).max() > 0


def test_a_run_without_a_mix_is_a_start_for_one_with_it(tmp_path):
    plain, corpus, batch, params = subject()
    write_run(plain, params, corpus.tokenizer, tmp_path / "plain")
    config = dataclasses.replace(subject("one", "encoder", True)[0], start=str(tmp_path / "plain"))
    mesh = one_device()
    with jax.set_mesh(mesh):
        abstract = abstract_state(config, place(batch, mesh, config.batch), mesh)
        state, lines = begin(config, initialise(config, batch, abstract), abstract)
    assert "drawn anew: mix/scale, mix/weights" in lines
    np.testing.assert_array_equal(state.params["mix"]["weights"], 0)
    np.testing.assert_array_equal(state.params["embed"]["table"], params["embed"]["table"])


def test_a_mix_that_has_no_place_is_an_error(tmp_path):
    with pytest.raises(UserError, match="XLNet's layers are not mixed"):
        Tag(model=XLNet(width=16, depth=2, heads=2), rows=Rows(pack=False, mix=True))
    net = model(embed_norm=True, placement="post", activation="gelu", eps=1e-12)
    for objective in (Tag(model=net, labels=("O", "B-X")), Classify(model=net, labels=("a", "b"))):
        objective = objective.resolve(words())
        params = unbox(objective.init(jax.random.key(0), {}))
        save(objective, params, words(), tmp_path / type(objective).__name__, "")
        mixed = dataclasses.replace(objective, rows=Rows(mix=True)).resolve(words())
        with pytest.raises(UserError, match=r"^objective.rows.mix: transformers"):
            save(mixed, unbox(mixed.init(jax.random.key(0), {})), words(), tmp_path / "mixed", "")
    assert not (tmp_path / "mixed").exists()


# -- examples ----------------------------------------------------------------------------------------------------------


def test_partners_are_the_next_real_places():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.random((40, 7)) < 0.6, np.eye(7, dtype=bool)])
    found = np.asarray(classify.partners(jnp.asarray(real)))
    for row, partners in zip(real, found):
        places = np.flatnonzero(row).tolist()
        for k, own in enumerate(places):
            assert partners[own] == places[(k + 1) % len(places)]


def test_shares_are_betas_and_a_rows_own():
    keys = jax.random.split(jax.random.key(3), 500)
    found = np.asarray(classify.shares(keys, 0.4, 20))
    assert found.mean() == pytest.approx(0.5, abs=0.02)
    assert found.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.03)
    np.testing.assert_array_equal(classify.shares(keys[7:9], 0.4, 20), found[7:9])


@pytest.mark.parametrize("kind", quick(["one", "several", "number"], ["one", "several"]))
def test_the_loss_of_mixtures_is_that_by_hand(kind, monkeypatch):
    """Two packed rows, in which one place is empty and one example weighs double; torch's losses, share by share."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    config, _, batch, params = subject(kind)
    rng, shape = np.random.default_rng(1), batch["weights"].shape
    weights = batch["weights"] * rng.choice([1.0, 2.0], shape).astype(np.float32)
    assert ((weights > 0).sum(1) > 1).any()
    batch = {**batch, "weights": weights}
    share = rng.random(shape).astype(np.float32)
    monkeypatch.setattr(classify, "shares", lambda keys_B, alpha, size: jnp.asarray(share))
    mixing = dataclasses.replace(config.objective, head=Head(inner="none"), mixup=0.5)
    objective = dataclasses.replace(mixing, frame=config.objective.frame)
    params = {**params, **noisy(unbox(objective.init(jax.random.key(1), batch)))}
    sums, _ = objective.loss(params, batch, None, jax.random.split(jax.random.key(0), len(weights)))
    z = np.asarray(network.pooled(network.states(objective.model, params, batch, None, False), batch, objective.pool))
    kernel, bias = (np.asarray(params["classifier"][name]) for name in ("kernel", "bias"))
    total, hits = 0.0, 0
    for row in range(len(z)):
        places = np.flatnonzero(weights[row])
        for k, own in enumerate(places):
            other, s = places[(k + 1) % len(places)], share[row, own]
            logits = torch.tensor((s * z[row, own] + (1 - s) * z[row, other]) @ kernel + bias)
            for part, at in ((s, own), (1 - s, other)):
                target = torch.tensor(batch["targets"][row, at])
                if kind == "one":
                    cost = functional.cross_entropy(logits, target.long())
                elif kind == "several":
                    cost = functional.binary_cross_entropy_with_logits(logits, target)
                else:
                    cost = functional.mse_loss(logits[0], target)
                total += weights[row, own] * float(part) * float(cost)
            hits += int(logits.argmax()) == batch["targets"][row, own if s >= 0.5 else other] if kind == "one" else 0
    assert float(sums["loss"][0]) == pytest.approx(total, rel=1e-4)
    assert float(sums["loss"][1]) == pytest.approx(weights.sum())
    if kind == "one":
        assert int(sums["accuracy"][0]) == hits
    plain = dataclasses.replace(objective, mixup=0.0)
    plain = dataclasses.replace(plain, frame=objective.frame)
    assert float(plain.loss(params, batch, None, None)[0]["loss"][0]) != pytest.approx(total, rel=1e-3)
    for name, pair in objective.loss(params, batch, None, None)[0].items():  # measured without keys: nothing is mixed
        np.testing.assert_array_equal(pair, plain.loss(params, batch, None, None)[0][name])


def test_mixtures_do_not_depend_on_parts():
    config, _, batch, params = subject("one", "encoder", False, 0.1)
    objective = dataclasses.replace(config.objective, mixup=0.4, frame=config.objective.frame)
    keys = jax.random.split(jax.random.key(2), config.batch)
    found = []
    for parts in (1, 4):
        one: Config = dataclasses.replace(config, objective=objective, micro_batches=parts)
        found.append(jax.jit(lambda params, one=one: gradients(one, params, batch, None, keys)[:2])(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), *found)


def test_mixtures_that_cannot_be_are_an_error():
    config, corpus, _, _ = subject()
    with pytest.raises(UserError, match="mixup"):
        Classify(model=model(), mixup=-1.0)
    alone = dataclasses.replace(config.objective, mixup=0.4, rows=Rows(pack=False))
    with pytest.raises(UserError, match=r"mixes the examples of a row"):
        alone.resolve(corpus.tokenizer).study(corpus)
    with pytest.raises(UserError, match="rdrop compares"):
        Regularised(objective=dataclasses.replace(config.objective, mixup=0.4), rdrop=1.0)
