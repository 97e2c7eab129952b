"""Maximal-update parametrisation: the numbers of its table, and what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config, Optimizer
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.sharding import unbox
from lm.train import train_step
from lm.training.state import chain, create
from tests.models import reference
from tests.models.reference import draw, tiny

VOCAB, LENGTH, BASE = 32, 16, 64


def stack(width: int, base: int = BASE, **changes) -> Transformer:
    fields = {"vocab": VOCAB, "context": LENGTH, "width": width, "depth": 2, "heads": 4, "mup_base": base, **changes}
    return Transformer(**fields)


def leaves(tree) -> dict:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_initial_values():
    """Yang et al. 2022, table 8: hidden variance 1 / fan-in, so x 1 / m for m times the width; tables as they were."""
    keys = jax.random.key(0), np.zeros((1, LENGTH), np.int32)
    base, wide = (leaves(unbox(jax.jit(Model(stack(w)).init)(*keys))["params"]) for w in (64, 256))
    for name in base:
        ratio = 0.5 if name.endswith("kernel") else 1.0
        assert float(wide[name].std()) == pytest.approx(ratio * float(base[name].std()), rel=0.1), name


def test_tuned_width_is_the_plain_model():
    """At the base width nothing changes: init, logits, attention and learning rates."""
    mup, plain = stack(64), stack(64, base=0)
    assert (mup.std, mup.out_std, mup.mup) == (plain.std, plain.out_std, 1.0)
    assert mup.attention_scale == pytest.approx(plain.attention_scale)
    params, tokens = draw(mup), np.arange(8)[None]
    a, b = (jax.jit(lambda p, c=c: Model(c).apply({"params": p}, tokens)[0])(params) for c in (mup, plain))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_logits_and_attention_scale():
    """Logits x 1 / m; scores x 1 / head size, equal to 1 / sqrt(head size) at the base width."""
    wide = stack(256)
    assert wide.attention_scale == pytest.approx(stack(64).attention_scale / 4)
    config = tiny(width=24, mup_base=12)
    params, tokens = draw(config), np.random.default_rng(0).integers(0, config.vocab, 10)
    h, _ = reference.forward(config, params, tokens)
    found = Model(config).apply({"params": params}, method="head").logits(jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(found, h @ params["embed"]["table"].T / 2, rtol=1e-3, atol=1e-4)


def updates(name: str, width: int) -> dict:
    """The first update of unit rate where every gradient and every parameter is 1 or -1."""
    config = Config(objective=Causal(model=stack(width)), optimizer=Optimizer(name=name), steps=9, batch=2)
    boxed = jax.eval_shape(config.objective.init, jax.random.key(0), {"tokens": np.zeros((1, LENGTH), np.int32)})
    optimizer = chain(config, boxed)
    rng = np.random.default_rng(0)
    gradient, params = (
        jax.tree.map(lambda p: rng.choice([-1.0, 1.0], p.shape).astype(np.float32), unbox(boxed)) for _ in range(2)
    )
    return leaves(jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(gradient, params))


def rms(x) -> float:
    return float(np.sqrt(np.square(np.asarray(x, np.float64)).mean()))


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_learning_rates(name):
    """Adam's column of the table: hidden matrices 1 / m, everything else as at the base."""
    base, wide = updates(name, 64), updates(name, 256)
    for leaf in base:
        assert rms(wide[leaf]) == pytest.approx(rms(base[leaf]) / (4 if leaf.endswith("kernel") else 1), rel=0.05), leaf


def test_learning_rates_sgd():
    """SGD's column, in the form with multipliers of table 8: input and output vectors x m, hidden matrices x 1."""
    base, wide = updates("sgd", 64), updates("sgd", 256)
    for leaf in base:
        assert rms(wide[leaf]) == pytest.approx(rms(base[leaf]) * (1 if leaf.endswith("kernel") else 4), rel=0.05), leaf


def test_learning_rates_adafactor():
    """The parameters are of one size here, so what is left for the rule to scale by is 1 / sqrt(m)."""
    base, wide = updates("adafactor", 64), updates("adafactor", 256)
    for leaf in base:
        expected = rms(base[leaf]) / (2 if leaf.endswith("kernel") else 1)
        assert rms(wide[leaf]) == pytest.approx(expected, rel=0.1), leaf


def test_learning_rates_muon():
    """An orthogonal matrix moves its output by rms x sqrt(width), where Adam's aligned one moves it by rms x width."""
    base, wide = updates("muon", 64), updates("muon", 256)
    for leaf in base:
        expected = rms(base[leaf]) / (2 if leaf.endswith("kernel") else 1)
        assert rms(wide[leaf]) == pytest.approx(expected, rel=0.25), leaf  # five Newton-Schulz steps are not exact


def batches(steps: int, rows: int = 8) -> list[dict]:
    rng = np.random.default_rng(0)
    result = []
    for _ in range(steps):
        tokens = rng.integers(0, VOCAB, (rows, LENGTH + 1)).astype(np.int32)
        tokens[:, 1::2] = tokens[:, :-1:2]  # something to learn: every other token repeats the one before
        result.append(
            {
                "tokens": tokens[:, :-1],
                "targets": tokens[:, 1:],
                "weights": np.ones((rows, LENGTH), np.float32),
                "segments": np.ones((rows, LENGTH), np.int32),
                "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1)),
            }
        )
    return result


def change(width: int, base: int, name: str = "adamw", lr: float = 0.003, steps: int = 4) -> dict[str, float]:
    """RMS change of the residual stream and of the logits, by a few training steps."""
    model = stack(width, base)
    config = Config(objective=Causal(model=model), optimizer=Optimizer(name=name, lr=lr), steps=steps, batch=8)
    data = batches(steps)
    boxed = jax.eval_shape(config.objective.init, jax.random.key(0), data[0])
    optimizer = chain(config, boxed)
    params = unbox(jax.jit(config.objective.init)(jax.random.key(0), data[0]))
    state = create(config, optimizer, params)
    step = jax.jit(lambda state, batch: train_step(config, optimizer, state, batch)[0])
    for batch in data:
        state = step(state, batch)
    seen = []
    for p in (params, state.params):
        h, stream = reference.forward(model, jax.device_get(p), data[0]["tokens"][0])
        seen.append({"stream": stream[-1], "logits": reference.logits(model, jax.device_get(p), h)})
    return {k: rms(seen[1][k] - seen[0][k]) for k in seen[0]}


def test_coordinates():
    """After a few Adam steps activations moved as far at four times the width; without muP they move further."""
    mup = [change(width, BASE) for width in (64, 256)]
    for name in mup[0]:
        assert 0.5 < mup[1][name] / mup[0][name] < 2, name
    plain = change(256, 0)  # at the base width both are the same model
    assert plain["stream"] / mup[0]["stream"] > 2
    assert plain["logits"] / mup[0]["logits"] > 2
