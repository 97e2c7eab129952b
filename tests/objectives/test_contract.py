"""What the loop may rely on, for every objective: the tiny configs of tests/configs, on a little real text."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import Config, from_json, load, to_json
from lm.data.corpus.prepare import prepare
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives.base import Objective, resolve, training_batches
from lm.objectives.catalogue import default, objectives
from lm.sharding import AXES, make_mesh, place, shardings, unbox
from lm.train import gradients
from lm.training import metrics
from tests.marks import quick

CONFIGS = sorted(Path("tests/configs").glob("tiny*.py"))
ROWS = 8


@functools.cache
def text() -> str:
    """A file with topics of the interpreter's documentation."""
    from pydoc_data.topics import topics

    path = Path(__import__("tempfile").mkdtemp()) / "topics.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)[:12]), encoding="utf-8")
    return str(path)


@functools.cache
def prepared(path: Path):
    """The resolved config, its corpus and its first batch."""
    import inspect
    import runpy

    takes = "text" in inspect.signature(runpy.run_path(str(path))["config"]).parameters
    config = dataclasses.replace(load(f"{path}:text={text()}" if takes else str(path)), batch=ROWS, micro_batches=1)
    config, corpus = resolve(config, prepare(config.data))
    return config, corpus, training_batches(config, corpus)[0]


@functools.cache
def parameters(path: Path):
    config, _, batch = prepared(path)
    params = jax.jit(lambda key, batch: unbox(config.objective.init(key, batch)))(jax.random.key(0), batch)
    # Zeros and ones hide mistakes: biases and norms get some noise.
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.02 * draw.normal(size=x.shape).astype(x.dtype), jax.device_get(params))


@functools.cache
def differentiated(config: Config):
    """Gradients and sums as a compiled function: one for all tests of a config."""
    return jax.jit(lambda *args: gradients(config, *args)[:2])


def found(config: Config, params, batch, seed: int = 2):
    """Gradients and sums of one batch, with everything random that is random in training."""
    keys_B = jax.random.split(jax.random.key(seed), config.batch)
    return differentiated(config)(params, batch, config.objective.initial_memory(config.batch), keys_B)


@functools.cache
def whole(path: Path):
    config, _, batch = prepared(path)
    return jax.device_get(found(config, parameters(path), batch))


def same(left, right) -> None:
    """Equal up to float32 rounding: gradients leaf by leaf in the 2-norm, relative to the whole gradient's."""
    (grads, sums), (expected, expected_sums) = left, right
    scale = float(optax.tree.norm(expected))
    assert scale > 0
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-1 * scale)
    assert sums.keys() == expected_sums.keys()
    for name in sums:
        np.testing.assert_allclose(sums[name], expected_sums[name], rtol=2e-5, atol=1e-4, err_msg=name)


each = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@each
def test_is_a_value(path):
    """Saved and read again, resolved again: the same."""
    config, corpus, _ = prepared(path)
    assert from_json(to_json(config)) == config
    assert to_json(resolve(from_json(to_json(config)), corpus)[0]) == to_json(config)


@each
def test_corrupts_by_seed_alone(path):
    """The batch again: the same arrays; another seed: others. No record was written into."""
    config, corpus, batch = prepared(path)
    again = training_batches(config, corpus)[0]
    assert batch.keys() == again.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], again[name])
        assert len(batch[name]) == ROWS, name
        assert batch[name].dtype in (np.int32, np.float32, np.bool_), name
    other = training_batches(dataclasses.replace(config, seed=1), corpus)[0]
    reading = config.objective.records.order == "reading"
    assert reading or any((batch[name] != other[name]).any() for name in batch)


def cut(path: Path, parts: int, axes: dict[str, int]):
    """Gradients and sums in so many parts, with the batch and the parameters cut over a mesh."""
    config, _, batch = prepared(path)
    mesh = make_mesh({**dict.fromkeys(AXES, 1), **axes}, jax.devices()[: math.prod(axes.values())])
    with jax.set_mesh(mesh):
        boxed = jax.eval_shape(config.objective.init, jax.random.key(0), batch)
        params = jax.device_put(parameters(path), shardings(boxed, mesh))
        config = dataclasses.replace(config, micro_batches=parts)
        return jax.device_get(found(config, params, place(batch, mesh, ROWS)))


# The losses that could go wrong in most ways: two networks, two streams with a memory, rows compared, several tasks.
KINDS = ("replaced", "permuted", "contrastive", "tasks")


@pytest.mark.parametrize(
    "path",
    quick(CONFIGS, [path for path in CONFIGS if path.stem.removeprefix("tiny_") in KINDS]),
    ids=lambda path: path.stem,
)
def test_neither_parts_nor_a_mesh_change_anything(path):
    """Both at once, as each costs a compilation; one by one in the slow proofs, to see which it is."""
    same(cut(path, 2, {"data": 4}), whole(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "axes"), [(4, {}), (1, {"data": 8}), (1, {"data": 2, "fsdp": 4}), (1, {"data": 4, "context": 2})], ids=str
)
@each
def test_a_cut_changes_nothing(path, parts, axes):
    """Parts alone; rows, parameters and, last, the rows' tokens: the longest arrays of every objective divide by two."""
    same(cut(path, parts, axes), whole(path))


@functools.cache
def evaluated(path: Path):
    """The deterministic sums as a function of a batch."""
    config = prepared(path)[0]
    memory = config.objective.initial_memory(2 * ROWS)
    run = jax.jit(lambda params, batch: config.objective.loss(params, batch, memory, None)[0])
    return lambda batch: metrics.add({}, run(parameters(path), batch))


@each
def test_empty_rows_count_nothing(path):
    """What fills up the last batch of an evaluation, all zeros, and the order of rows, change no sum."""
    _, _, batch = prepared(path)
    filled = {name: np.concatenate([x, np.zeros_like(x)]) for name, x in batch.items()}
    order = np.random.default_rng(0).permutation(2 * ROWS)
    expected, shuffled = (evaluated(path)(b) for b in (filled, {name: x[order] for name, x in filled.items()}))
    assert expected.keys() == shuffled.keys()
    for name in expected:
        np.testing.assert_allclose(shuffled[name], expected[name], rtol=1e-5, atol=1e-4, err_msg=name)
    config = prepared(path)[0]
    for name, weight in jax.device_get(config.objective.weights(filled)).items():
        np.testing.assert_allclose(weight, jax.device_get(config.objective.weights(batch))[name], err_msg=name)
    for sums, weight in expected.values():
        assert np.isfinite(sums)
        assert np.isfinite(weight)


@each
def test_learns_one_batch(path):
    """Thirty steps of Adam on one batch bring the loss down; steps this large jump now and then, hence the median."""
    config, _, batch = prepared(path)
    optimizer, params = optax.adam(1e-2), parameters(path)
    state, update, losses = optimizer.init(params), jax.jit(optimizer.update), []
    for _ in range(30):
        grads, sums = found(config, params, batch, seed=3)
        updates, state = update(grads, state)
        params = optax.apply_updates(params, updates)
        losses.append(float(sums["loss"][0] / sums["loss"][1]))
    assert np.isfinite(losses).all()
    assert np.median(losses[-5:]) < 0.9 * losses[0], losses


@each
def test_shows_a_row(path):
    """A person reads rows, with and without guesses; no array is printed raw."""
    config, corpus, batch = prepared(path)
    guesses = jax.device_get(jax.jit(config.objective.predict)(parameters(path), jax.tree.map(jnp.asarray, batch)))
    for row in range(2):
        example = {name: x[row] for name, x in batch.items()}
        for guess in (None, guesses and {name: x[row] for name, x in guesses.items()}):
            shown = config.objective.show(corpus.tokenizer, example, guess)
            assert shown.strip()
            assert "array(" not in shown


def test_every_objective_is_here():
    assert {type(prepared(path)[0].objective) for path in CONFIGS} == set(objectives())


@pytest.mark.parametrize("objective", objectives(), ids=lambda objective: objective.__name__)
def test_says_what_it_is(objective):
    assert objective.paper
    assert objective.holds
    assert Path(default(objective)).is_file(), default(objective)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declares(Objective):
    model: Transformer
    cls: int | None = None
    separator: int | None = None

    @property
    def special(self) -> tuple[str, ...]:
        return "[CLS]", "[SEP]"


def test_resolve_sets_the_vocabulary_and_the_ids_that_an_objective_declares():
    tokenizer = Bytes().build(lambda: ()).with_special(("[CLS]", "[SEP]"))
    objective = Declares(model=Transformer(context=8, width=8, depth=1, heads=1))
    resolved = objective.resolve(tokenizer)
    assert (resolved.model.vocab, resolved.separator) == (tokenizer.vocab, tokenizer.separator)
    assert resolved.cls == tokenizer.special_id("[CLS]")
    assert resolved.resolve(tokenizer) == resolved
    with pytest.raises(UserError, match="vocab=5 is smaller"):
        dataclasses.replace(objective, model=dataclasses.replace(objective.model, vocab=5)).resolve(tokenizer)
