"""Private gradients against optax's aggregate of all rows at once, and the accountant against closed forms."""

import dataclasses
import functools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize, stats

from lm.config import Config, Mesh, Optimizer, from_json, load, to_json
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.objectives.base import resolve, training_batches
from lm.sharding import make_mesh, place, unbox
from lm.train import abstract_batch, compile_step, gradients, numbers_of, train_step
from lm.training import dp_budget, dp_gradients, parameters
from lm.training.dp_budget import Private
from lm.training.parameters import Groups
from lm.training.state import abstract_state, chain, create, initialise
from tests.marks import quick
from tests.test_optimizer import one_device
from tests.tuning.test_lora import noisy

CLIP = 2.0  # between the norms of the rows' gradients


@functools.cache
def subject(name: str = "tests/configs/tiny_classify.py"):
    """A run with an example a row, its batches and parameters."""
    config = load(name)
    rows = dataclasses.replace(config.objective.rows, pack=False)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, rows=rows))
    config, corpus = resolve(config, prepare(config.data))
    batches = training_batches(config, corpus)
    params = noisy(unbox(config.objective.init(jax.random.key(0), batches[0])), spread=0.1)
    return config, corpus, batches, params


def asked(config: Config, parts: int = 1, train: tuple[str, ...] = (), **fields) -> Config:
    optimizer = Optimizer(name="sgd", lr=0.1, momentum=0.0, private=Private(**fields), groups=Groups(train=train))
    return dataclasses.replace(config, optimizer=optimizer, micro_batches=parts)


@functools.cache
def keys(rows: int = 8) -> jax.Array:
    return jax.random.split(jax.random.key(7), rows)


@functools.cache
def each() -> dict[str, np.ndarray]:
    """Every row's gradient, one call a row: path -> (rows, ...)."""
    config, _, batches, params = subject()
    objective, batch = config.objective, batches[0]

    @jax.jit
    def one(row, key):
        def loss(params):
            sums, _ = objective.loss(params, row, None, key)
            return sums["loss"][0] / sums["loss"][1]

        return parameters.flat(jax.grad(loss)(params))

    rows = [one({k: x[i : i + 1] for k, x in batch.items()}, keys()[i : i + 1]) for i in range(config.batch)]
    return {path: np.stack([row[path] for row in rows]) for path in rows[0]}


@functools.cache
def found(parts: int = 1, train: tuple[str, ...] = (), clip: float = 0.0):
    """The loop's gradients before noise, and its sums."""
    config, _, batches, params = subject()
    config = asked(config, parts, train, clip=clip)
    keys_B = keys()  # not inside: cached under a trace, the keys of later tests would be its tracers
    call = jax.jit(lambda params, batch: gradients(config, params, batch, None, keys_B))
    grads, sums, _ = call(params, batches[0])
    return parameters.flat(grads), sums


@pytest.mark.parametrize("noise", [0.0, 1.3])
@pytest.mark.parametrize("parts", quick([1, 4], [4]))
def test_it_is_optaxs_aggregate(noise, parts):
    rows, key = subject()[0].batch, jax.random.key(5)
    norms = np.sqrt(sum(np.square(x).reshape(len(x), -1).sum(1) for x in each().values()))
    assert (norms > CLIP).any()
    assert (norms < CLIP).any()
    aggregate = optax.contrib.differentially_private_aggregate(CLIP, noise, key=key)
    expected, _ = aggregate.update(each(), aggregate.init(None))
    grads, sums = found(parts, clip=CLIP)
    if noise:
        grads = dp_gradients.noise(grads, noise * CLIP / rows, key)
    for path, x in expected.items():
        np.testing.assert_allclose(grads[path], x, atol=2e-6, err_msg=path)
    assert [float(x) for x in sums["clipped"]] == [(norms > CLIP).sum(), rows]


def test_without_clipping_it_is_the_mean_of_rows_and_the_plain_gradient():
    """One example a row, all of weight one."""
    grads, plain = found(clip=1e9)[0], found()[0]
    for path, rows in each().items():
        np.testing.assert_allclose(grads[path], rows.mean(0), atol=1e-6, err_msg=path)
        np.testing.assert_allclose(grads[path], plain[path], atol=1e-6, err_msg=path)


def test_noise_has_its_deviation_and_is_new_in_every_step():
    config, zeros = asked(subject()[0], clip=2.0, noise=3.0), {"a": jnp.zeros((100, 200)), "b": {"c": jnp.zeros(50)}}
    first, again, later = (dp_gradients.noised(config, zeros, 0, jnp.asarray(step)) for step in (0, 0, 1))
    assert np.std(first["a"]) == pytest.approx(3.0 * 2.0 / config.batch, rel=0.03)
    np.testing.assert_array_equal(first["a"], again["a"])
    assert abs(np.corrcoef(np.ravel(first["a"]), np.ravel(later["a"]))[0, 1]) < 0.05
    other = dp_gradients.noised(config, zeros, 1, jnp.asarray(0))
    assert not np.array_equal(first["a"], other["a"])


def test_what_is_frozen_gets_no_noise_and_does_not_count_in_the_norm():
    config = asked(subject()[0], train=("classifier",), clip=0.2, noise=5.0)
    _, _, batches, params = subject()
    optimizer = chain(config, jax.eval_shape(config.objective.init, jax.random.key(0), batches[0]))
    state = create(config, optimizer, params)
    state, _ = jax.jit(lambda state, batch: train_step(config, optimizer, state, batch))(state, batches[0])
    after, before = parameters.flat(jax.device_get(state.params)), parameters.flat(params)
    for path, x in after.items():
        assert np.array_equal(x, before[path]) != path.startswith("classifier"), path
    head = {path: x for path, x in each().items() if path.startswith("classifier")}
    aggregate = optax.contrib.differentially_private_aggregate(0.2, 0.0, key=jax.random.key(0))
    grads = found(train=("classifier",), clip=0.2)[0]
    for path, x in aggregate.update(head, aggregate.init(None))[0].items():
        np.testing.assert_allclose(grads[path], x, atol=2e-6, err_msg=path)


@pytest.mark.slow
def test_neither_parts_nor_a_mesh_change_anything():
    """Noise and all: in two parts, with rows, parameters and heads over eight devices."""
    config, _, batches, _ = subject()
    results = []
    for shape, parts in ((Mesh(data=1), 1), (Mesh(data=2, fsdp=2, tensor=2), 2)):
        one = dataclasses.replace(asked(config, parts, clip=CLIP, noise=0.5), mesh=shape)
        mesh = one_device() if shape.data == 1 else make_mesh(dataclasses.asdict(shape))
        with jax.set_mesh(mesh):
            batch = abstract_batch(place(batches[0], mesh, one.batch))
            abstract = abstract_state(one, batch, mesh)
            state = initialise(one, batch, abstract)
            state, sums = compile_step(one, abstract, batch)(state, place(batches[0], mesh, one.batch), numbers_of(one))
            results.append((parameters.flat(jax.device_get(state.params)), float(sums["loss"][0])))
    (expected, loss), (params, again) = results
    for path, x in expected.items():
        np.testing.assert_allclose(params[path], x, atol=2e-6, err_msg=path)
    assert again == pytest.approx(loss, rel=1e-5)


def abstract(name: str, optimizer: Optimizer) -> None:
    name, _, balanced = name.partition(":")
    config = load(name)
    if balanced:
        rows = dataclasses.replace(config.objective.rows, pack=False)
        config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, balanced=True, rows=rows))
    config, corpus = resolve(dataclasses.replace(config, optimizer=optimizer), prepare(config.data))
    mesh = one_device()
    with jax.set_mesh(mesh):
        abstract_state(config, abstract_batch(place(training_batches(config, corpus)[0], mesh, config.batch)), mesh)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("tests/configs/tiny_classify.py", r"objective\.rows\.pack=False"),
        ("tests/configs/tiny_seq2seq.py", r"objective\.pack=False"),
        ("tests/configs/tiny_recurrent.py", "memory"),
        ("tests/configs/tiny_tasks.py", "one task"),
        ("tests/configs/tiny_contrastive.py", "compares the rows"),
        ("tests/configs/tiny_classify.py:balanced", "class_weights and balanced"),
    ],
)
def test_rows_that_do_not_stand_alone_are_an_error(name, word):
    with pytest.raises(UserError, match=word):
        abstract(name, Optimizer(private=Private(clip=1.0)))


def test_values_are_checked_and_kept():
    for fields, word in (({"noise": 1.0}, "private.clip"), ({"clip": -1.0}, "clip"), ({"clip": 1, "delta": 1.0}, "delta")):
        with pytest.raises(UserError, match=word):
            Private(**fields)
    config = asked(load("tests/configs/tiny_classify.py"), clip=1.0, noise=2.0)
    assert from_json(to_json(config)) == config
    old = json.loads(to_json(asked(config)))
    del old["optimizer"]["private"]  # a run from before
    assert from_json(json.dumps(old)) == asked(config)


def test_without_the_accountant_the_figure_is_left_out_and_that_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    config, corpus, batches, _ = subject()
    noisy_run = asked(config, clip=1.0, noise=1.0)
    assert dp_budget.guarantee(noisy_run, corpus, batches, 10) == {}
    assert "pip install dp-accounting" in dp_budget.notices(noisy_run, corpus, batches)[0]
    assert "without noise" in dp_budget.notices(asked(config, clip=1.0), corpus, batches)[0]
    assert dp_budget.notices(config, corpus, batches) == ()


def test_epsilon_is_between_the_exact_one_and_the_textbooks():
    """Every row in every step: a Gaussian mechanism, whose exact curve is Balle & Wang 2018, theorem 8."""
    pytest.importorskip("dp_accounting")
    noise, steps, delta = 4.0, 10, 1e-5
    mu = math.sqrt(steps) / noise
    curve = lambda e: stats.norm.cdf(mu / 2 - e / mu) - math.exp(e) * stats.norm.cdf(-mu / 2 - e / mu) - delta  # noqa: E731
    exact = optimize.brentq(curve, 0, 50)
    classic = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # Mironov 2017, proposition 3
    assert exact <= dp_budget.epsilon(noise, 1.0, steps, delta) <= classic
    config, corpus, batches, _ = subject()
    few, many = (dp_budget.guarantee(asked(config, clip=1.0, noise=2.0), corpus, batches, n) for n in (1, 100))
    rows = batches.streams[0].count
    assert few["delta"] == pytest.approx(rows**-1.1)
    assert 0 < few["epsilon"] < many["epsilon"] < dp_budget.epsilon(2.0, 1.0, 100, few["delta"])
