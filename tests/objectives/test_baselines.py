"""The LSTM as an objective: the causal one's rows and targets, and a state that goes from batch to batch."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm.config import Config, from_json, to_json
from lm.data.corpus.store import Tokens
from lm.data.rows.pipeline import Batches, Evaluation
from lm.models.lstm import LSTM
from lm.objectives.baselines import LSTMLanguageModel
from lm.objectives.causal import Causal
from lm.sharding import unbox
from lm.train import gradients
from tests.models.reference import tiny

SEPARATOR, VOCAB = 9, 10
MODEL = LSTM(vocab=VOCAB, context=8, width=16, depth=2)
CARRY = LSTMLanguageModel(model=MODEL, carry=True, separator=SEPARATOR)
ROWS = 4


def documents(count: int = 40, longest: int = 30) -> Tokens:
    rng = np.random.default_rng(0)
    return Tokens.of([rng.integers(0, 9, n) for n in rng.integers(1, longest, count)], SEPARATOR, VOCAB)


@pytest.fixture(scope="module")
def params():
    batch = {"tokens": np.zeros((2, 8), np.int32)}
    return unbox(jax.jit(CARRY.init)(jax.random.key(0), batch))


@pytest.fixture(scope="module")
def loss():
    """(params, batch, memory) -> (sums, memory), compiled once for all that share the shapes."""
    return jax.jit(lambda params, batch, memory: CARRY.loss(params, batch, memory, None))


def evaluation(tokens: Tokens, objective, rows: int = ROWS) -> Evaluation:
    return Evaluation(tokens, objective.records, objective.corrupt, rows)


def test_rows_are_the_causal_objectives():
    ours = LSTMLanguageModel(model=MODEL, separator=SEPARATOR)
    theirs = Causal(model=tiny(context=8), separator=SEPARATOR)
    assert ours.records == theirs.records
    for mine, other in zip(evaluation(documents(), ours), evaluation(documents(), theirs), strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], other[name])
    assert float(ours.weights(mine)["loss"]) == other["weights"].sum()


def total(loss, params, batches, memory) -> tuple[float, float]:
    """Sum the loss over batches, handing the memory on."""
    found = np.zeros(2)
    for batch in batches:
        sums, memory = loss(params, batch, memory)
        found += np.array(jax.device_get(sums["loss"]))
    return float(found[0]), float(found[1])


def test_a_carried_state_makes_rows_one_text(params, loss):
    """One lane of rows of 8 has the loss of the text in one row: documents end where they end, not where rows do."""
    tokens = documents()
    found = total(loss, params, evaluation(tokens, CARRY, rows=1), CARRY.initial_memory(1))
    long = dataclasses.replace(CARRY, carry=False, model=dataclasses.replace(MODEL, context=len(tokens) - 1))
    (batch,) = evaluation(tokens, long, rows=1)
    (whole, weight), _ = jax.jit(lambda p, b: long.loss(p, b, None, None))(params, batch)[0]["loss"], None
    assert found[1] == pytest.approx(float(weight)) == len(tokens) - 1
    assert found[0] == pytest.approx(float(whole), rel=1e-5)
    alone = total(jax.jit(lambda p, b, m: long.loss(p, b, m, None)), params, evaluation(tokens, CARRY, rows=1), None)
    assert abs(alone[0] - found[0]) > 0.01


def test_a_row_that_begins_a_document_forgets(params, loss):
    """What was read before has no effect on it; it has on a row in the midst of a document."""
    batch = next(iter(evaluation(documents(), CARRY)))
    starts, within = batch["tokens"].copy(), batch["tokens"].copy()
    starts[:, 0], within[:, 0] = SEPARATOR, 3
    ones = jax.tree.map(lambda x: x + 1, CARRY.initial_memory(ROWS))
    for tokens, same in ((starts, True), (within, False)):
        pair = [loss(params, batch | {"tokens": tokens}, m)[0]["loss"][0] for m in (ones, CARRY.initial_memory(ROWS))]
        assert (float(pair[0]) == float(pair[1])) is same


def test_no_state_leaks_between_rows(params, loss):
    batch = next(iter(evaluation(documents(), CARRY)))
    other = {name: x.copy() for name, x in batch.items()}
    other["tokens"][0] = (other["tokens"][0] + 1) % 9
    memory = jax.tree.map(lambda x: x + 0.5, CARRY.initial_memory(ROWS))
    pair = [loss(params, b, memory)[1] for b in (batch, other)]
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max((1, 2)), *pair)
    for rows in jax.tree.leaves(changed):
        assert rows[0] > 0
        assert not rows[1:].any()


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_nothing(params, parts):
    """Gradients, sums and the carried state, with dropout on."""
    objective = dataclasses.replace(CARRY, model=dataclasses.replace(MODEL, dropout=0.3))
    batch = Batches(((1.0, documents()),), objective.records, objective.corrupt, ROWS)[1]
    memory = jax.tree.map(lambda x: x + 0.5, objective.initial_memory(ROWS))
    keys = jax.random.split(jax.random.key(1), ROWS)

    def run(parts):
        config = Config(objective=objective, batch=ROWS, micro_batches=parts)
        return jax.jit(lambda p: gradients(config, p, batch, memory, keys))(params)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))

    jax.tree.map(close, run(parts), run(1))


def test_nothing_real_in_a_batch_is_no_trouble(params, loss):
    batch = {name: np.zeros_like(x) for name, x in next(iter(evaluation(documents(), CARRY))).items()}
    sums, memory = loss(params, batch, CARRY.initial_memory(ROWS))
    assert float(sums["loss"][0]) == float(sums["loss"][1]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(memory))


def test_config_round_trip_and_figures():
    config = Config(objective=CARRY)
    assert from_json(to_json(config)) == config
    assert CARRY.flops() == 8 * 6 * (8 * 2 * 16**2 + 10 * 16)
    assert CARRY.initial_memory(3).cell_BD.shape == (3, 2, 16)
    assert dataclasses.replace(CARRY, carry=False).initial_memory(3) is None
    assert CARRY.records.order == "reading"


def test_trains_from_the_command_line(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log\n" * 200)
    line = [
        sys.executable,
        "-m",
        "lm.objectives.baselines",
        f"--config=tests/configs/tiny_lstm.py:text={text},steps=12",
    ]
    done = subprocess.run([*line, f"--workdir={tmp_path}/run"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "bits_per_byte" in done.stdout
    losses = [float(row.split("loss")[1].split()[0]) for row in done.stdout.splitlines() if " lr " in row]
    assert losses[-1] < losses[0] - 1
