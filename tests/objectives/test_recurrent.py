"""The recurrent objective: rows, borders, a memory that goes from batch to batch, and what it is worth."""

import functools
import json
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config, from_json, to_json
from lm.data.corpus.store import Tokens
from lm.data.rows.pipeline import Batches, Evaluation
from lm.errors import UserError
from lm.objectives.recurrent import Lengths, Recurrent
from lm.train import gradients
from tests.models.test_memory import draw, tiny

SEPARATOR = 9
TEXTS = [np.array(text) for text in ([1, 2, 3], [4], [5, 6, 7, 8, 1, 2], [3])]


def record(tokens, segments=None, weights=None):
    tokens = np.asarray(tokens, np.int32)
    ones = np.ones(len(tokens))
    return {
        "tokens": tokens,
        "segments": (ones if segments is None else np.asarray(segments)).astype(np.int32),
        "weights": (ones if weights is None else np.asarray(weights)).astype(np.float32),
    }


def corrupt(objective, given):
    kept = {name: value.copy() for name, value in given.items()}
    example = objective.corrupt(np.random.default_rng(0), given)
    for name, value in kept.items():
        np.testing.assert_array_equal(given[name], value)
    return example


def objective(**changes) -> Recurrent:
    model = tiny(**changes.pop("model", {}))
    return Recurrent(model=model, separator=SEPARATOR, **changes)


def test_targets_are_the_next_tokens_and_run_over_borders():
    row = record([9, 1, 2, 9, 4, 9, 5], segments=[1, 1, 1, 2, 2, 3, 3])
    example = corrupt(objective(), row)
    np.testing.assert_array_equal(example["tokens"], [9, 1, 2, 9, 4, 9])
    np.testing.assert_array_equal(example["targets"], [1, 2, 9, 4, 9, 5])
    np.testing.assert_array_equal(example["segments"], np.ones(6))
    np.testing.assert_array_equal(example["weights"], np.ones(6))
    integers = dict.fromkeys(("tokens", "targets", "segments"), "int32")
    assert {k: v.dtype.name for k, v in example.items()} == {**integers, "weights": "float32"}


@pytest.mark.parametrize("segments", [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 3, 3]])
def test_borders_that_stop_are_the_separators_whatever_the_packing(segments):
    """1 goes on from the row before: a row that begins with a separator has none of it."""
    stop = objective(borders="stop")
    inside = corrupt(stop, record([3, 1, 2, 9, 4, 9, 5], segments=segments))
    np.testing.assert_array_equal(inside["segments"], [1, 1, 1, 2, 2, 3])
    begins = corrupt(stop, record([9, 1, 2, 9, 4, 9, 5], segments=segments))
    np.testing.assert_array_equal(begins["segments"], [2, 2, 2, 3, 3, 4])


def test_padding_stays_padding():
    row = record([3, 9, 2, 0, 0], segments=[1, 2, 2, 0, 0], weights=[0, 1, 1, 0, 0])
    for borders in ("cross", "stop"):
        example = corrupt(objective(borders=borders), row)
        np.testing.assert_array_equal(example["segments"] > 0, [True, True, True, False])
        np.testing.assert_array_equal(example["weights"], [1, 1, 0, 0])


@pytest.mark.parametrize("borders", ["cross", "stop"])
@pytest.mark.parametrize("packing", ["documents", "windows"])
def test_held_out_tokens_count_once(borders, packing):
    tokens = Tokens.of(TEXTS * 3, SEPARATOR, 10)
    made = objective(borders=borders)
    batches = list(Evaluation(tokens, made.records, made.corrupt, 2, packing))
    assert sum(b["weights"].sum() for b in batches) == len(tokens) - 1


def stream() -> Tokens:
    rng = np.random.default_rng(0)
    return Tokens.of([rng.integers(9, size=n) for n in (5, 30, 2, 17, 11, 40, 3)], SEPARATOR, 10)


@functools.cache
def apply(made: Recurrent):
    return jax.jit(lambda params, batch, memory: made.loss(params, batch, memory, None))


def walk(made: Recurrent, params, batches) -> list[float]:
    memory, found = made.initial_memory(len(batches[0]["tokens"])), []
    for batch in batches:
        sums, memory = apply(made)(params, batch, memory)
        found.append(float(sums["loss"][0]))
    return found


@pytest.mark.parametrize("borders", ["cross", "stop"])
def test_batches_in_reading_order_are_one_long_row(borders):
    """Four batches with a memory of all before cost what one row of four times the length costs."""
    made = objective(model={"memory": 24}, borders=borders)
    long = objective(model={"context": 24, "memory": 0}, borders=borders)
    corpus = ((1.0, stream()),)
    short = [Batches(corpus, made.records, made.corrupt, 2)[i] for i in range(4)]
    (whole,) = [Batches(corpus, long.records, long.corrupt, 2)[0]]
    np.testing.assert_array_equal(np.concatenate([b["tokens"] for b in short], 1), whole["tokens"])
    params = draw(made.model)
    assert long.initial_memory(2) is None
    np.testing.assert_allclose(sum(walk(made, params, short)), walk(long, params, [whole])[0], rtol=1e-5)
    alone = walk(made.without_memory(), params, short)
    assert abs(sum(alone) - sum(walk(made, params, short))) > 1e-2
    np.testing.assert_allclose(alone[0], walk(made, params, short)[0], rtol=1e-6)  # the first sees no memory


def test_parts_of_a_batch_keep_their_memories():
    """Loss, gradient and memory of 4 micro-batches are those of one, over two steps."""
    rates = dict.fromkeys(("dropout", "attention_dropout", "position_dropout"), 0.2)
    made = objective(model={"depth": 1, "cutoffs": (), "divide": 1, **rates})
    batches = [Batches(((1.0, stream()),), made.records, made.corrupt, 8)[i] for i in range(2)]
    params = draw(made.model)
    keys = jax.random.split(jax.random.key(1), 8)
    results = []
    for parts in (1, 4):
        config = Config(objective=made, batch=8, micro_batches=parts)
        run = jax.jit(lambda batch, memory, c=config: gradients(c, params, batch, memory, keys))
        memory = made.initial_memory(8)
        for batch in batches:
            found = run(jax.tree.map(jnp.asarray, batch), memory)
            memory = found[2]
        results.append(found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *results)
    assert results[0][2].hidden_BLMD.shape == (8, 1, 5, 12)
    assert results[0][2].seen_BM.all()


def test_evaluation_lengths():
    made = objective(evaluation=Lengths(context=3, memory=40, clamp=20))
    measured = made.measured()
    assert (measured.records.length, measured.records.stride) == (4, 3)
    assert measured.initial_memory(2).hidden_BLMD.shape == (2, 2, 40, 12)
    assert measured.model.same_length
    assert measured.model.clamp == 20
    assert measured.measured() is measured
    batches = list(Evaluation(stream(), measured.records, measured.corrupt, 2))
    params = draw(made.model)
    assert np.isfinite(walk(measured, params, batches)).all()
    none = objective().without_memory()
    assert none.initial_memory(2) is None
    assert none.measured() is none


def test_rows_of_padding_cost_nothing():
    made = objective()
    batch = {k: np.zeros((2, 6), v.dtype) for k, v in corrupt(made, record(np.arange(7))).items()}
    params = draw(made.model)
    sums, memory = apply(made)(params, batch, made.initial_memory(2))
    assert sums["loss"] == (0, 0)
    assert np.isfinite(memory.hidden_BLMD).all()


def test_json_keeps_all():
    made = Config(objective=objective(evaluation=Lengths(context=3, memory=40)))
    assert from_json(to_json(made)) == made
    assert json.loads(to_json(made))["objective"]["type"] == "lm.objectives.recurrent.Recurrent"


def test_vocabulary_and_separator_come_from_the_tokenizer():
    made = Recurrent(model=tiny(vocab=0), borders="stop")
    found = made.resolve(SimpleNamespace(vocab=40, separator=7))
    assert (found.model.vocab, found.separator) == (40, 7)
    assert found.resolve(SimpleNamespace(vocab=40, separator=7)) == found
    with pytest.raises(UserError, match="separator"):
        made.resolve(SimpleNamespace(vocab=40, separator=None))
    with pytest.raises(UserError, match="below the vocabulary"):
        made.resolve(SimpleNamespace(vocab=12, separator=7))
    with pytest.raises(UserError, match="smaller than the tokenizer"):
        Recurrent(model=tiny()).resolve(SimpleNamespace(vocab=40, separator=7))


def test_a_person_can_read_a_row():
    tokenizer = SimpleNamespace(decode=lambda ids, special: "".join("abcdefghi|"[i] for i in ids))
    made = objective()
    example = corrupt(made, record([0, 1, 9, 2, 3, 4, 5]))
    batch = {name: value[None] for name, value in example.items()}
    found = made.predict(draw(made.model), batch)
    assert found["guess"].shape == (1, 6)
    text = made.show(tokenizer, example, {"guess": example["targets"]})
    assert text.splitlines() == [
        "reads   'ab|cde'",
        "writes  'b|cdef'",
        "guesses 'b|cdef' (100% right, without memory)",
    ]
    assert "guesses" not in made.show(tokenizer, example)


def test_rows_are_made_fast():
    """300,000 tokens a second asked for; a hundred times that is usual."""
    made = Recurrent(model=tiny(context=128), separator=SEPARATOR, borders="stop")
    row, rng = record(np.arange(129) % 10), np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(500):
        made.corrupt(rng, row)
    assert 500 * 128 / (time.perf_counter() - began) > 300_000
