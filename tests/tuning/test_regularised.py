"""R-Drop, adversarial vectors and smoothness against torch and against a table with one row for every place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import load
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.models.layers import fold
from lm.objectives.base import resolve, training_batches
from lm.objectives.regularised import Regularised
from lm.sharding import unbox
from tests.marks import quick
from tests.tuning.test_lora import noisy


@functools.cache
def subject(kind: str = "one"):
    """A classifier of several texts a row, its batch, parameters and keys."""
    config = load(f"tests/configs/tiny_classify.py:kind={kind}")
    config, corpus = resolve(config, prepare(config.data))
    batch = training_batches(config, corpus)[0]
    params = unbox(config.objective.init(jax.random.key(0), batch))
    return config.objective, batch, noisy(params, spread=0.1), jax.random.split(jax.random.key(1), config.batch)


def sums(objective, params, batch, keys_B):
    return jax.jit(lambda params, keys_B: objective.loss(params, batch, None, keys_B)[0])(params, keys_B)


@pytest.mark.parametrize("kind", quick(["one", "several"], ["one"]))
def test_rdrop_is_the_releases(kind):
    """loss = (CE1 + CE2) / 2 + alpha (KL(p, q) + KL(q, p)) / 2, with torch's divergence."""
    torch = pytest.importorskip("torch")
    objective, batch, params, keys_B = subject(kind)
    found = sums(Regularised(objective=objective, rdrop=2.0), params, batch, keys_B)
    left, right = (torch.tensor(np.asarray(objective.logits(params, batch, k))) for k in (keys_B, fold(keys_B, 3001)))
    weights, divergence = torch.tensor(batch["weights"]), torch.nn.functional.kl_div
    if kind == "one":
        p, q = torch.log_softmax(left, -1), torch.log_softmax(right, -1)
        each = [divergence(a, b, reduction="none", log_target=True).sum(-1) for a, b in ((p, q), (q, p))]
    else:
        yes = [torch.distributions.Bernoulli(logits=x) for x in (left, right)]
        each = [torch.distributions.kl_divergence(a, b).mean(-1) for a, b in (yes, yes[::-1])]
    expected = float(((each[0] + each[1]) / 2 * weights).sum())
    assert expected > 1e-4
    assert float(found["rdrop"][0]) == pytest.approx(expected, rel=1e-3)
    losses = [float(sums(objective, params, batch, k)["loss"][0]) for k in (keys_B, fold(keys_B, 3001))]
    assert float(found["loss"][0]) == pytest.approx(np.mean(losses), rel=1e-5)


def own_rows(objective, batch, params):
    """The same network with a table that has a row for every place: its gradient is that of the vectors."""
    tokens = batch["tokens"]
    table = params["embed"]["table"][tokens].reshape(tokens.size, -1)
    model = dataclasses.replace(objective.model, vocab=tokens.size, pad_vocab=1)
    changed = dataclasses.replace(objective, model=model)
    changed = dataclasses.replace(changed, frame=objective.frame)
    rows = {**batch, "tokens": np.arange(tokens.size, dtype=np.int32).reshape(tokens.shape)}

    def loss(table, keys_B):
        return changed.loss({**params, "embed": {"table": table}}, rows, None, keys_B)[0]["loss"][0]

    return jax.jit(loss), table


def norms(x: np.ndarray, batch) -> np.ndarray:
    """Norm of each text's vectors, at each of its tokens."""
    segments = batch["segments"]
    x, found = x.reshape(*segments.shape, -1), np.zeros(segments.shape)
    for row, numbers in enumerate(segments):
        for number in np.unique(numbers):
            own = numbers == number
            found[row, own] = np.sqrt(np.square(x[row, own], dtype=np.float64).sum())
    return found.reshape(-1, 1)


@pytest.mark.parametrize("climbs", quick([1, 3], [3]))
def test_adversarial_vectors_are_miyatos_and_madrys(climbs):
    objective, batch, params, keys_B = subject()
    assert batch["segments"].max() > 1
    found = sums(
        Regularised(objective=objective, adversarial=1.0, radius=0.5, stride=0.3, climbs=climbs), params, batch, keys_B
    )
    loss, table = own_rows(objective, batch, params)
    uphill = jax.jit(jax.grad(loss))
    delta = np.zeros(table.shape)
    for _ in range(climbs):
        slope = np.asarray(uphill(table + jnp.asarray(delta, jnp.float32), keys_B), np.float64)
        size = norms(slope, batch)
        delta = delta + (0.5 if climbs == 1 else 0.3) * slope / np.where(size > 0, size, 1)
        size = norms(delta, batch)
        delta = delta * np.minimum(1, 0.5 / np.where(size > 0, size, 1))
    worse = float(loss(table + jnp.asarray(delta, jnp.float32), keys_B))
    assert float(found["adversarial/loss"][0]) == pytest.approx(worse, rel=1e-4)
    plain = float(sums(objective, params, batch, keys_B)["loss"][0])
    assert float(found["loss"][0]) == pytest.approx(plain, rel=1e-6)
    assert worse > plain


def test_smoothness_looks_for_the_worst_direction():
    """The divergence on the way uphill is above that of noise of the same length, and moves no sum but its own."""
    objective, batch, params, keys_B = subject()
    found = sums(Regularised(objective=objective, smoothness=1.0, radius=0.5), params, batch, keys_B)
    loss = float(found["smoothness"][0])
    noise = np.random.default_rng(0).normal(size=(*batch["tokens"].shape, objective.model.width))
    noise = noise.reshape(-1, noise.shape[-1])
    noise *= 0.5 / norms(noise, batch)
    harder = Regularised(objective=objective, smoothness=1.0)
    delta = [jnp.asarray(noise.reshape(*batch["tokens"].shape, -1), jnp.float32)]
    moved, there = (harder.run(params, batch, None, keys_B, d)[1] for d in (delta, None))
    assert loss > 2 * float(harder.divergence(moved, there, batch)) > 0
    assert float(found["loss"][0]) == pytest.approx(float(sums(objective, params, batch, keys_B)["loss"][0]), rel=1e-6)


def test_without_keys_it_is_the_objective():
    objective, batch, params, _ = subject()
    found = sums(Regularised(objective=objective, rdrop=1.0, adversarial=1.0), params, batch, None)
    expected = sums(objective, params, batch, None)
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def test_what_does_not_apply_is_an_error():
    with pytest.raises(UserError, match="probabilities of labels"):
        Regularised(objective=subject("number")[0], rdrop=1.0)
    with pytest.raises(UserError, match="probabilities of labels"):
        Regularised(objective=load("tests/configs/tiny_tag.py").objective, smoothness=1.0)
    Regularised(objective=subject("number")[0], adversarial=1.0)
    coarse = subject("one")[0]
    coarse = dataclasses.replace(coarse, model=dataclasses.replace(coarse.model, dtype="bfloat16"))
    with pytest.raises(UserError, match="lost among vectors in bfloat16"):
        Regularised(objective=coarse, smoothness=1.0)
    Regularised(objective=coarse, smoothness=1.0, noise=0.02)
