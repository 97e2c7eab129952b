"""The same run on every mesh: losses and parameters of eight simulated devices against one."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from lm.config import Config, Mesh, Optimizer, Schedule
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.sharding import make_mesh, place, unbox
from lm.train import abstract_batch, compile_step, numbers_of, train_step
from lm.training.state import abstract_params, abstract_state, chain, create, initialise
from tests.marks import quick

ROWS, LENGTH = 16, 64
ONE = Mesh(data=1)


def rows(step: int) -> dict[str, np.ndarray]:
    """A packed batch of random tokens with uneven weights: two documents a row."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 96, (ROWS, LENGTH + 1), np.int32)
    lengths = (LENGTH // 3, LENGTH - LENGTH // 3)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": rng.random((ROWS, LENGTH), np.float32),
        "segments": np.tile(np.repeat([1, 2], lengths), (ROWS, 1)).astype(np.int32),
        "positions": np.tile(np.concatenate([np.arange(n) for n in lengths]), (ROWS, 1)).astype(np.int32),
    }


@cache
def run(mesh: Mesh, micro_batches: int = 1, dropout: float = 0.1, steps: int = 3):
    """Losses, parameters and the compiled program of three steps."""
    model = Transformer(vocab=96, context=LENGTH, width=64, depth=2, heads=4, dropout=dropout, attention_dropout=dropout)
    # A plain rule: Adam's division turns rounding of tiny gradients into whole steps.
    config = Config(
        objective=Causal(model=model, z_loss=1e-3, chunk=48),
        optimizer=Optimizer(name="sgd", lr=0.5, clip=1.0, decay=0.1),
        mesh=mesh,
        batch=ROWS,
        micro_batches=micro_batches,
    )
    devices = jax.devices()[:1] if mesh == ONE else jax.devices()
    found = make_mesh(dataclasses.asdict(mesh), devices)
    with jax.set_mesh(found):
        batch = abstract_batch(place(rows(0), found, ROWS))
        abstract = abstract_state(config, batch, found)
        state, step, losses = initialise(config, batch, abstract), compile_step(config, abstract, batch), []
        first = jax.device_get(state.params)
        for i in range(steps):
            state, sums = step(state, place(rows(i), found, ROWS), numbers_of(config))
            losses.append(float(sums["loss"][0] / sums["loss"][1]))
        return losses, first, jax.device_get(state.params), step.as_text()


def same(left, right, tolerance: float = 1e-5) -> None:
    """Compare two parameter trees leaf by leaf, in the relative 2-norm."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-3)


MESHES = [
    Mesh(data=8),
    Mesh(data=1, fsdp=8),
    Mesh(data=2, tensor=4),
    Mesh(data=1, context=8),
    Mesh(data=2, expert=4),
    Mesh(data=1, fsdp=2, tensor=2, context=2),
    Mesh(data=2, fsdp=2, tensor=2),
]


@pytest.mark.parametrize("mesh", quick(MESHES, (MESHES[3], MESHES[5])), ids=lambda mesh: str(mesh)[5:-1])
def test_a_mesh_changes_neither_loss_nor_parameters(mesh):
    losses, first, last, program = run(mesh)
    expected, expected_first, expected_last, _ = run(ONE)
    jax.tree.map(np.testing.assert_array_equal, first, expected_first)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    same(last, expected_last)
    if mesh.fsdp > 1:  # parameters are gathered; gradients of tables are scattered as they are summed
        assert "all-gather" in program
        assert " reduce-scatter(" in program
    if mesh.context > 1:  # keys and values go around the ring of devices
        assert "collective-permute" in program
        assert ("all-gather" in program) == (mesh.fsdp > 1)
    if mesh.tensor > 1:
        assert "all-reduce" in program


@pytest.mark.parametrize("micro_batches", quick([2, 4], [4]))
def test_micro_batches_change_nothing(micro_batches):
    losses, _, last, _ = run(ONE, micro_batches)
    expected, _, expected_last, _ = run(ONE)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    same(last, expected_last)


@pytest.mark.slow
def test_micro_batches_on_a_mesh_change_nothing():
    losses, _, last, _ = run(Mesh(data=2, fsdp=2, tensor=2), 2)
    expected, _, expected_last, _ = run(ONE)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    same(last, expected_last)


def test_data_parallel_steps_only_add_gradients_up():
    """Chunks of tokens that did not follow the mesh would make the vocabulary head exchange hidden states."""
    _, _, _, program = run(Mesh(data=8), dropout=0.0)
    assert "all-reduce" in program
    for collective in ("all-to-all", "all-gather", "collective-permute"):
        assert f" {collective}(" not in program


def test_seed_rate_and_length_are_no_constants_of_the_program():
    """Another seed, rate, schedule or number of steps is the same program: a sweep compiles once an arm."""
    model = Transformer(vocab=96, context=LENGTH, width=16, depth=1, heads=2, dropout=0.1)
    schedule = Schedule(shape="wsd", warmup=5, final=0.1)
    base = Config(objective=Causal(model=model), batch=ROWS, schedule=schedule, optimizer=Optimizer(lr=1e-3))
    other = dataclasses.replace(
        base, seed=7, steps=99, optimizer=Optimizer(lr=3e-4), schedule=dataclasses.replace(schedule, warmup=2, final=0.0)
    )

    def program(config, as_arguments=True):
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in rows(0).items()}
        optimizer = chain(config, abstract_params(config.objective, batch))
        state = jax.eval_shape(lambda: create(config, optimizer, unbox(abstract_zeros(config, batch))))
        numbers = [numbers_of(config)] * as_arguments
        return jax.jit(lambda *arguments: train_step(config, optimizer, *arguments)).lower(state, batch, *numbers).as_text()

    assert program(base) == program(other)
    assert program(base, False) != program(other, False)


def abstract_zeros(config, batch):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(config.objective, batch))
