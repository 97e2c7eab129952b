"""Update rules against the formulas of their papers, what decays, and steps that are not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config, Mesh, Optimizer, Schedule
from lm.errors import UserError
from lm.objectives.causal import Causal
from lm.sharding import axes_of, make_mesh, unbox
from lm.train import train_step
from lm.training import optimizer as optimizers
from lm.training.state import abstract_params, abstract_state, chain, create, initialise
from tests.models.reference import draw, tiny

# A table, a stacked matrix that is split in heads, its inverse, stacked norms and a bias: every kind of parameter.
SHAPES = {
    "table": (("vocab", "embed"), (20, 6)),
    "query": (("layers", "embed", "heads", "head"), (3, 6, 2, 4)),
    "out": (("layers", "heads", "head", "embed"), (3, 2, 4, 6)),
    "up": (("layers", "embed", "mlp"), (3, 6, 10)),
    "norm": (("layers", "embed"), (3, 6)),
    "bias": (("layers", "heads", "head"), (3, 2, 4)),
}
AXES = {name: axes for name, (axes, _) in SHAPES.items()}
MATRICES = {"table", "query", "out", "up"}


def trees(seed: int, shapes=SHAPES) -> dict:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, (_, shape) in shapes.items()}


def run(config: Optimizer, steps: int = 3, axes=AXES, shapes=SHAPES) -> list[dict]:
    """Updates of unit rate, step by step; the parameters move by a tenth of each."""
    rule = optimizers.build(config, axes)
    params = jax.tree.map(jnp.asarray, trees(0, shapes))
    state, result = rule.init(params), []
    update = jax.jit(rule.update)
    for step in range(steps):
        updates, state = update(trees(step + 1, shapes), state, params)
        params = jax.tree.map(lambda p, u: p + 0.1 * u, params, updates)
        result.append(jax.device_get(updates))
    return result


def follow(formula, steps: int = 3, decay: float = 0.0, shapes=SHAPES, axes=AXES) -> list[dict]:
    """The same from `formula(gradient, memory, step, param, axes) -> (direction, memory)`, in float64."""
    params, memory, result = trees(0, shapes), {}, []
    params = {name: np.asarray(p, np.float64) for name, p in params.items()}
    for step in range(steps):
        updates = {}
        for name, gradient in trees(step + 1, shapes).items():
            direction, memory[name] = formula(
                np.asarray(gradient, np.float64), memory.get(name), step + 1, params[name], axes[name]
            )
            updates[name] = -direction - decay * (name in MATRICES) * params[name]
        params = {name: p + 0.1 * updates[name] for name, p in params.items()}
        result.append(updates)
    return result


def same(found: list[dict], expected: list[dict], tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(mine[name], theirs[name], atol=tolerance * np.abs(theirs[name]).max(), err_msg=name)


def adam(b1, b2, eps):
    """Loshchilov & Hutter 2019, algorithm 2."""

    def formula(g, memory, t, p, axes):
        m, v = memory or (0, 0)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), (m, v)

    return formula


def test_adamw():
    config = Optimizer(betas=(0.8, 0.9), eps=0.1, decay=0.3)
    same(run(config), follow(adam(0.8, 0.9, 0.1), decay=0.3))


def test_adamw_is_torchs():
    torch = pytest.importorskip("torch")
    params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in trees(0).items()}
    groups = [{"params": [p for n, p in params.items() if (n in MATRICES) == m], "weight_decay": 0.3 * m} for m in (0, 1)]
    rule = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), eps=1e-8)
    for step, updates in enumerate(run(Optimizer(betas=(0.8, 0.9), decay=0.3))):
        before = {name: p.detach().numpy().copy() for name, p in params.items()}
        for name, gradient in trees(step + 1).items():
            params[name].grad = torch.tensor(gradient)
        rule.step()
        for name, p in params.items():
            moved = (p.detach().numpy() - before[name]) / 0.1
            np.testing.assert_allclose(updates[name], moved, atol=2e-5, err_msg=name)


def test_lion():
    """Chen et al. 2023, algorithm 2."""

    def formula(g, m, t, p, axes):
        m = 0 if m is None else m
        return np.sign(0.8 * m + 0.2 * g), 0.95 * m + 0.05 * g

    same(run(Optimizer(name="lion", betas=(0.8, 0.95), decay=0.1)), follow(formula, decay=0.1))


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_sgd(momentum):
    def formula(g, m, t, p, axes):
        m = g + momentum * (0 if m is None else m)
        return m, m

    same(run(Optimizer(name="sgd", momentum=momentum, decay=0.2)), follow(formula, decay=0.2))


def clipped(gradients: dict, limit: float) -> dict:
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    return {name: g * min(1.0, limit / norm) for name, g in gradients.items()}


@pytest.mark.parametrize("limit", [1.0, 1e4])
def test_clipping_is_global(limit):
    found = run(Optimizer(name="sgd", momentum=0.0, clip=limit), steps=1)[0]
    for name, g in clipped(trees(1), limit).items():
        np.testing.assert_allclose(found[name], -g, rtol=1e-4)


def root(x, axis=None):
    return np.sqrt((x**2).mean(axis, keepdims=True))


def adafactor(g, memory, t, p, axes):
    """Shazeer & Stern 2018, algorithms 4 to 6, every layer a matrix of its own: factored from 128 x 128 on."""
    keep, inner = 1 - t**-0.8, tuple(i for i, a in enumerate(axes) if a != "layers")
    square = g**2 + 1e-30
    if len(inner) == 2 and min(g.shape[i] for i in inner) >= 128:
        rows, columns = memory or (0, 0)
        rows = keep * rows + (1 - keep) * square.mean(inner[1], keepdims=True)
        columns = keep * columns + (1 - keep) * square.mean(inner[0], keepdims=True)
        v, memory = rows * columns / rows.mean(inner[0], keepdims=True), (rows, columns)
    else:
        v = memory = keep * (0 if memory is None else memory) + (1 - keep) * square
    u = g / np.sqrt(v)
    u = u / np.maximum(1, root(u, inner))
    return u * np.maximum(1e-3, root(p, inner)), memory


LARGE = {
    "table": (("vocab", "embed"), (150, 128)),
    "norm": (("embed",), (128,)),
    "small": (("vocab", "embed"), (9, 128)),
}


def test_adafactor():
    axes = {name: a for name, (a, _) in LARGE.items()}
    found = run(Optimizer(name="adafactor"), axes=axes, shapes=LARGE)
    same(found, follow(adafactor, shapes=LARGE, axes=axes), 1e-4)


def test_adafactor_of_stacked_layers():
    """A layer's update depends on that layer only."""
    same(run(Optimizer(name="adafactor")), follow(adafactor), 1e-4)


def test_adafactor_saves_memory_on_heads():
    shapes = {"query": (("layers", "embed", "heads", "head"), (2, 256, 4, 64))}
    rule = optimizers.build(Optimizer(name="adafactor"), {"query": shapes["query"][0]})
    state = jax.eval_shape(rule.init, trees(0, shapes))
    assert max(x.size for x in jax.tree.leaves(state)) < 2 * 256 * 256


# -- Muon --------------------------------------------------------------------------------------------------------------


def as_matrix(name: str, x: np.ndarray) -> np.ndarray:
    """Layers of a hidden kernel as (L, inputs, outputs)."""
    return x.reshape(3, *{"query": (6, 8), "out": (8, 6), "up": (6, 10)}[name])


def test_muon_orthogonalises_each_layer():
    """Heads are columns of one matrix and layers matrices of their own; singular values near 0.2 sqrt(larger side).

    Five Newton-Schulz steps leave them between about 0.7 and 1.2 of that.
    """
    for updates in run(Optimizer(name="muon", momentum=0.9)):
        for name in ("query", "out", "up"):
            matrices = as_matrix(name, updates[name])
            scale = 0.2 * np.sqrt(max(matrices.shape[1:]))
            values = np.linalg.svd(matrices, compute_uv=False) / scale
            assert values.shape == (3, 6)
            assert values.min() > 0.6, (name, values)
            assert values.max() < 1.3, (name, values)
            assert np.sqrt((matrices**2).mean((1, 2))) == pytest.approx([0.2] * 3, rel=0.25)


def test_muon_points_where_the_polar_factor_does():
    """The first update is -U V^T of the layer's gradient: from the gradient's own singular vectors."""
    updates, gradients = run(Optimizer(name="muon"), steps=1)[0], trees(1)
    for name in ("query", "out", "up"):
        for update, gradient in zip(as_matrix(name, updates[name]), as_matrix(name, gradients[name])):
            u, _, vt = np.linalg.svd(gradient, full_matrices=False)
            cosine = -(update * (u @ vt)).sum() / np.linalg.norm(update) / np.linalg.norm(u @ vt)
            assert cosine > 0.97, name


def test_muon_leaves_the_rest_to_adam():
    """Tables, norms and biases: Adam with Nesterov momentum, as Dozat 2016 and optax have it."""

    def nadam(g, memory, t, p, axes):
        m, v = memory or (0, 0)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        return ahead / (np.sqrt(v / (1 - 0.99**t)) + 1e-8), (m, v)

    expected = follow(nadam)
    for found, theirs in zip(run(Optimizer(name="muon", betas=(0.9, 0.99))), expected):
        for name in ("table", "norm", "bias"):
            np.testing.assert_allclose(found[name], theirs[name], atol=2e-5, err_msg=name)


def test_muon_decays_like_the_others():
    with_decay, without = (run(Optimizer(name="muon", decay=d), steps=1)[0] for d in (0.5, 0.0))
    for name, p in trees(0).items():
        expected = -0.5 * p if name in MATRICES else np.zeros_like(p)
        np.testing.assert_allclose(with_decay[name] - without[name], expected, atol=1e-5)


# -- what decays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [tiny(), tiny(qk_norm=True, tied=False, activation="swiglu", positions="bucket"), tiny(bias=False)],
    ids=str,
)
def test_decay_hits_matrices_and_tables(model):
    """By name and not by rank: stacked norms and biases have two or three axes."""
    boxed = abstract_params(Causal(model=model), {"tokens": np.zeros((1, 16), np.int32)})
    mask = optimizers.map_axes(optimizers.is_matrix, axes_of(boxed))
    hidden = optimizers.map_axes(optimizers.is_hidden, axes_of(boxed))
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): m for path, m in jax.tree_util.tree_leaves_with_path(mask)}
    for name, decays in found.items():
        assert decays == name.endswith(("kernel", "embed/table", "input/places/table", "output/table")), name
    for path, is_hidden in jax.tree_util.tree_leaves_with_path(hidden):
        assert is_hidden == (path[-1].key == "kernel"), path
    assert sum(found.values()) == sum(n.endswith(("kernel", "/table")) for n in found)


def test_mup_spares_decay():
    plain = Optimizer(name="lion")
    rules = [optimizers.build(dataclasses.replace(plain, decay=d), AXES, mup=4.0) for d in (0.0, 0.5)]
    params, gradient = trees(0), trees(1)
    bare, decayed = (rule.update(gradient, rule.init(params), params)[0] for rule in rules)
    for name in SHAPES:
        size = 0.25 if name in MATRICES - {"table"} else 1.0
        np.testing.assert_allclose(np.abs(bare[name]), size)
        expected = -0.5 * params[name] if name in MATRICES else 0 * params[name]
        np.testing.assert_allclose(decayed[name] - bare[name], expected, atol=1e-6)


def test_unknown_rule():
    with pytest.raises(Exception, match="adamv"):
        optimizers.build(Optimizer(name="adamv"), AXES)


# -- the step ----------------------------------------------------------------------------------------------------------


def batch(rows: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 29, (rows, 17)).astype(np.int32)
    ones = np.ones((rows, 16), np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": ones.astype(np.float32),
        "segments": ones,
        "positions": np.tile(np.arange(16, dtype=np.int32), (rows, 1)),
    }


def start(config: Config):
    boxed = abstract_params(config.objective, batch())
    optimizer = chain(config, boxed)
    state = create(config, optimizer, jax.tree.map(jnp.asarray, draw(config.objective.model)))
    return state, jax.jit(lambda state, batch: train_step(config, optimizer, state, batch))


@pytest.fixture(scope="module")
def run_():
    """A run with momentum, decay and an average, and its compiled step."""
    config = Config(
        objective=Causal(model=tiny(depth=1, dropout=0.1)),
        optimizer=Optimizer(lr=0.1, decay=0.1, clip=1.0, average=0.3),
        schedule=Schedule(shape="linear", warmup=2),
        steps=10,
        batch=4,
    )
    return start(config)


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("where", ["weights", "parameters", "overflow"])
def test_a_step_that_is_not_finite_is_skipped(run_, where):
    """Parameters, slots and average stay bit for bit; the step counts, and so do the skipped ones in a row."""
    state, step = run_
    state, _ = step(state, batch())
    bad, rows = state, batch()
    if where == "weights":
        rows["weights"][1, 2] = np.inf
    else:
        value = np.inf if where == "parameters" else 1e30  # finite, but its square is not
        table = state.params["embed"]["table"].at[3, 1].set(value)
        bad = state.replace(params={**state.params, "embed": {"table": table}})
    before = jax.device_get(bad)
    for count in (1, 2):
        bad, sums = step(bad, rows)
        after = jax.device_get(bad)
        for field in ("params", "opt_state", "average"):
            assert equal(getattr(before, field), getattr(after, field)), field
        assert after.skipped == count
        assert after.step == before.step + count
        assert float(sums["skipped"][0]) == count
        for name, (total, weight) in sums.items():
            assert np.isfinite(total), name
            assert np.isfinite(weight), name
        assert float(sums["grad_norm"][1]) == float(sums["loss"][1]) == 0


def test_a_good_step_after_a_bad_one_counts_from_zero(run_):
    state, step = run_
    rows = batch()
    rows["weights"][0] = np.nan
    bad, _ = step(state, rows)
    assert int(bad.skipped) == 1
    good, sums = step(bad, batch())
    assert int(good.skipped) == 0
    assert float(sums["skipped"][0]) == 0
    assert not equal(good.params, bad.params)


def test_average_and_rate(run_):
    """average = k average + (1 - k) params with k = min(0.3, (1 + t) / (10 + t)); the rate follows the schedule."""
    state, step = run_
    average = jax.device_get(state.params)
    for t in range(6):
        state, sums = step(state, batch())
        keep = min(0.3, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, jax.device_get(state.params))  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(state.average), average)
        share = (t + 1) / 3 if t < 2 else 1 - (t - 2) / 8
        assert float(sums["lr"][0]) == pytest.approx(0.1 * share, rel=1e-5)
    assert equal(state.best_params(), state.average)
    assert state.replace(average=None).best_params() is state.params


def test_dropout_differs_from_step_to_step():
    config = Config(objective=Causal(model=tiny(depth=1, dropout=0.5)), optimizer=Optimizer(lr=0.0), batch=4, steps=3)
    state, step = start(config)
    first, sums_1 = step(state, batch())
    _, sums_2 = step(first, batch())
    _, again = step(state, batch())
    assert float(sums_1["loss"][0]) != float(sums_2["loss"][0])
    assert float(sums_1["loss"][0]) == float(again["loss"][0])


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_every_rule_trains(name):
    """Every slot laid out as the state is; the loss of one batch falls."""
    lr = {"sgd": 0.3, "adafactor": 0.1, "lion": 0.01}.get(name, 0.03)
    config = Config(
        objective=Causal(model=tiny(depth=1)),
        optimizer=Optimizer(name=name, lr=lr, decay=0.01, clip=1.0),
        batch=4,
        steps=12,
    )
    optimizer = chain(config, abstract_params(config.objective, batch()))
    state = create(config, optimizer, jax.tree.map(jnp.asarray, draw(config.objective.model, spread=0.02)))
    abstract = abstract_state(config, batch(), one_device())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    step = jax.jit(lambda state, batch: train_step(config, optimizer, state, batch))
    losses = []
    for _ in range(config.steps):
        state, sums = step(state, batch())
        losses.append(float(sums["loss"][0] / sums["loss"][1]))
    assert losses[-1] < losses[0] - 0.3, losses
    assert losses[0] == pytest.approx(np.log(29), abs=0.2)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_slots_lie_as_their_parameters(name):
    """On a mesh the moments of a parameter are cut as it is; on every device they would cost what cutting saves."""
    config = Config(objective=Causal(model=tiny(heads=4)), optimizer=Optimizer(name=name), batch=4)
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 1, "expert": 1}, jax.devices()[:4])
    model = dataclasses.replace(config.objective.model, pad_vocab=2)
    config = dataclasses.replace(config, objective=Causal(model=model))
    abstract = abstract_state(config, batch(), mesh)
    whole = [x for x in jax.tree.leaves(abstract.params) if x.sharding.is_fully_replicated]
    assert not [x for x in whole if x.ndim > 1 and x.size > 50]
    for x in jax.tree.leaves(abstract.opt_state):
        assert x.size <= 50 or not x.sharding.is_fully_replicated, x


def one_device():
    return make_mesh(dataclasses.asdict(Mesh()), jax.devices()[:1])


def test_initialise_draws_by_the_seed():
    config = Config(objective=Causal(model=tiny(depth=1)), batch=4)
    with jax.set_mesh(one_device()):
        drawn = [
            initialise(c, batch(), abstract_state(c, batch(), one_device())).params
            for c in (config, dataclasses.replace(config, seed=1))
        ]
    assert not equal(*drawn)
    plain = unbox(jax.jit(config.objective.init)(jax.random.fold_in(jax.random.key(0), 0), batch()))
    assert equal(drawn[0], plain)


@pytest.mark.parametrize("change", [{"betas": (1.0, 0.9)}, {"betas": (0.9, -1.0)}, {"eps": -1.0}], ids=str)
def test_betas_out_of_range(change):
    with pytest.raises(UserError):
        Optimizer(**change)


@pytest.mark.parametrize(
    "change", [{"lr": -1.0}, {"clip": -1.0}, {"momentum": 1.0}, {"average": 1.0}, {"decay": -0.1}], ids=str
)
def test_numbers_out_of_range(change):
    with pytest.raises(UserError, match=next(iter(change))):
        Optimizer(**change)
