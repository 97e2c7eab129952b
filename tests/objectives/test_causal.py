"""The causal objective: rows from records, and the same loss and gradient however the batch is cut."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config
from lm.data.corpus.store import Tokens
from lm.data.rows.packing import window
from lm.data.rows.pipeline import Batches, Evaluation
from lm.errors import UserError
from lm.objectives.causal import Causal
from lm.train import gradients
from tests.marks import quick
from tests.models.reference import documents, draw, forward, logits, tiny

SEPARATOR = 9
TEXTS = [np.array(text) for text in ([1, 2, 3], [4], [5, 6, 7, 8, 1, 2], [3])]


def corrupt(row, separator=SEPARATOR, weights=None):
    objective = Causal(model=tiny(), separator=separator)
    record = row | {"weights": np.ones(len(row["tokens"]), np.float32) if weights is None else weights}
    kept = {name: value.copy() for name, value in record.items()}
    example = objective.corrupt(np.random.default_rng(0), record)
    for name, value in kept.items():  # rows may share arrays: corrupt must not write into them
        np.testing.assert_array_equal(record[name], value)
    return example


def test_targets_are_the_next_tokens():
    """With separators every token but the first is a target; the separator opens the document after it."""
    row = window(Tokens.of(TEXTS, SEPARATOR, 10), 0, 16)
    np.testing.assert_array_equal(row["tokens"], [9, 1, 2, 3, 9, 4, 9, 5, 6, 7, 8, 1, 2, 9, 3, 9])
    example = corrupt(row)
    np.testing.assert_array_equal(example["tokens"], row["tokens"][:-1])
    np.testing.assert_array_equal(example["targets"], row["tokens"][1:])
    np.testing.assert_array_equal(example["weights"], np.ones(15))
    np.testing.assert_array_equal(example["segments"], [1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 4, 4])
    np.testing.assert_array_equal(example["positions"], [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5, 6, 0, 1])


def test_types_of_a_row():
    example = corrupt(window(Tokens.of(TEXTS, SEPARATOR, 10), 0, 16))
    kinds = {name: value.dtype.name for name, value in example.items()}
    integers = dict.fromkeys(("tokens", "targets", "segments", "positions"), "int32")
    assert kinds == {**integers, "weights": "float32"}


@pytest.mark.parametrize("packing", ["documents", "windows"])
def test_no_targets_across_documents_without_a_separator(packing):
    row = window(Tokens.of(TEXTS, None, 10), 0, 11, packing)
    example = corrupt(row, separator=None)
    borders = [2, 3, 9] if packing == "documents" else []
    expected = np.ones(10)
    expected[borders] = 0
    np.testing.assert_array_equal(example["weights"], expected)


def test_padding_and_counted_tokens_keep_their_weight():
    row = window(Tokens.of(TEXTS, 0, 10), 10, 12)  # separator 0 looks like padding
    weights = (row["segments"] > 0).astype(np.float32)
    weights[:2] = 0  # the record before had those
    example = corrupt(row, separator=0, weights=weights)
    np.testing.assert_array_equal(example["weights"], weights[1:])
    assert example["weights"].sum() == 4


@pytest.mark.parametrize("separator", [SEPARATOR, None])
@pytest.mark.parametrize("packing", ["documents", "windows"])
def test_held_out_tokens_count_once(separator, packing):
    """Every token but the stream's first; without separators, none that begins a document."""
    tokens = Tokens.of(TEXTS * 3, separator, 10)
    objective = Causal(model=tiny(context=5), separator=separator)
    batches = list(Evaluation(tokens, objective.records, objective.corrupt, 2, packing))
    inside = separator is None and packing == "documents"
    assert sum(b["weights"].sum() for b in batches) == len(tokens) - (12 if inside else 1)
    targets = np.concatenate([b["targets"][b["weights"] > 0] for b in batches])
    if not inside:
        np.testing.assert_array_equal(targets, tokens.tokens[1:])


def test_training_rows_count_every_token_once_an_epoch():
    tokens = Tokens.of([np.arange(1, 41)], 0, 50)
    objective = Causal(model=tiny(context=8, vocab=50), separator=0)
    batches = Batches(((1.0, tokens),), objective.records, objective.corrupt, 5)
    first = batches[0]
    assert first["tokens"].shape == (5, 8)
    assert sorted(first["targets"].ravel()) == sorted([*range(1, 41)])
    assert first["weights"].sum() == 40


def test_resolve():
    tokenizer = SimpleNamespace(vocab=29, separator=4)
    resolved = Causal(model=tiny(vocab=0)).resolve(tokenizer)
    assert (resolved.model.vocab, resolved.separator) == (29, 4)
    assert Causal(model=tiny(vocab=64)).resolve(tokenizer).model.vocab == 64
    with pytest.raises(UserError, match=r"objective\.model\.vocab=28 is smaller than the tokenizer's 29"):
        Causal(model=tiny(vocab=28)).resolve(tokenizer)
    assert Causal(model=tiny()).resolve(SimpleNamespace(vocab=29, separator=None)).separator is None


def test_window_and_stride():
    objective = Causal(model=tiny(context=16))
    assert (objective.records.length, objective.records.stride) == (17, 16)


# -- dialogues ---------------------------------------------------------------------------------------------------------

DIALOGUES = [[np.array(turn) for turn in turns] for turns in ([[1, 2], [3], [4, 5]], [[6], [7, 8]], [[1, 2, 3]])]


@pytest.mark.parametrize("dialogue", ["all", "responses"])
def test_dialogues_are_turns_ended_by_the_separator(dialogue):
    """DialoGPT: the last separator is only a target; responses ask for nothing of the first turn, not even its end."""
    objective = Causal(model=tiny(context=18), separator=SEPARATOR, dialogue=dialogue)
    example = objective.corrupt(np.random.default_rng(0), {"documents": DIALOGUES})
    asked = [1, 1, 1, 1, 1, 1, 1, *[1, 1, 1, 1], *[1, 1, 1]]
    if dialogue == "responses":
        asked = [0, 0, 1, 1, 1, 1, 1, *[0, 1, 1, 1], *[0, 0, 0]]
    for name, expected in {
        "tokens": [1, 2, 9, 3, 9, 4, 5, 6, 9, 7, 8, 1, 2, 3],
        "targets": [2, 9, 3, 9, 4, 5, 9, 9, 7, 8, 9, 2, 3, 9],
        "weights": asked,
        "segments": [1] * 7 + [2] * 4 + [3] * 3,
        "positions": [*range(7), *range(4), *range(3)],
    }.items():
        np.testing.assert_array_equal(example[name], expected + [0] * 4)
        assert example[name].dtype == (np.float32 if name == "weights" else np.int32)
    assert not any(value.any() for value in objective.corrupt(None, {"documents": []}).values())


def test_dialogues_from_a_stream():
    """Rows of whole dialogues hold every turn once; the longest row there may be fits."""
    texts = [np.concatenate([[*turn, SEPARATOR] for turn in turns])[:-1] for turns in DIALOGUES * 5]
    objective = Causal(model=tiny(context=8), separator=SEPARATOR, dialogue="all")
    opened = objective.records.open(Tokens.of(texts, SEPARATOR, 10))
    rows = [objective.corrupt(None, opened.held_out(None, i)) for i in range(opened.once)]
    assert sum(row["segments"].max() for row in rows) == 15
    assert sum(row["weights"].sum() for row in rows) == 5 * (7 + 4 + 3)


def test_dialogues_need_a_separator():
    with pytest.raises(UserError, match="dialogue=all needs a tokenizer with a separator"):
        Causal(model=tiny(), dialogue="all").resolve(SimpleNamespace(vocab=29, separator=None))


# -- the loss ----------------------------------------------------------------------------------------------------------


def batch(rows: int = 8, length: int = 16, vocab: int = 29, seed: int = 0) -> dict[str, np.ndarray]:
    """Packed rows with documents of many sizes, padding, and weights that differ from row to row."""
    rng = np.random.default_rng(seed)
    cuts = [documents(*rng.integers(1, 7, 3), length=length) for _ in range(rows)]
    segments, positions = (np.stack(x) for x in zip(*cuts))
    weights = rng.random((rows, length)).astype(np.float32) * (segments > 0) * rng.integers(0, 3, (rows, 1))
    tokens, targets = (rng.integers(0, vocab, (rows, length), dtype=np.int32) for _ in range(2))
    named = {"tokens": tokens, "targets": targets, "segments": segments, "positions": positions}
    return {**named, "weights": weights.astype(np.float32)}


def nll(config, params, rows):
    """Negative log-likelihood (B, T) and log Z, row by row in float64."""
    result = []
    for row in range(len(rows["tokens"])):
        h, _ = forward(config, params, rows["tokens"][row], rows["positions"][row], rows["segments"][row])
        scores = logits(config, params, h)
        log_z = np.log(np.exp(scores).sum(-1))
        chosen = scores[np.arange(len(h)), rows["targets"][row]]
        result.append((log_z - chosen, log_z, scores.argmax(-1) == rows["targets"][row]))
    return (np.stack(x) for x in zip(*result))


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_loss_of_packed_rows(z_loss):
    objective = Causal(model=tiny(), z_loss=z_loss)
    params, rows = draw(objective.model), batch(3)
    sums, memory = jax.jit(objective.loss)(params, rows, None, None)
    losses, log_z, hits = nll(objective.model, params, rows)
    weights = rows["weights"]
    expected = {"loss": (weights * (losses + z_loss * log_z**2)).sum(), "accuracy": (weights * hits).sum()}
    if z_loss:
        expected |= {"nll": (weights * losses).sum(), "z": (weights * log_z**2).sum()}
    assert set(sums) == set(expected)
    for name, value in expected.items():
        assert float(sums[name][0]) == pytest.approx(value, rel=1e-4)
        assert float(sums[name][1]) == pytest.approx(weights.sum(), rel=1e-6)
    assert memory is None


def test_weights_are_the_loss_s_denominators():
    objective = Causal(model=tiny())
    rows = batch()
    sums, _ = jax.jit(objective.loss)(draw(objective.model), rows, None, None)
    assert set(objective.scales) == set(objective.weights(rows))
    for name, weight in objective.weights(rows).items():
        assert float(weight) == pytest.approx(float(sums[name][1]))


def test_packed_loss_and_gradient_are_those_of_separate_rows():
    """One row of three documents, and three rows of one: the same sum, the same gradient."""
    objective = Causal(model=tiny())
    params, packed = draw(objective.model), batch(1, seed=3)
    numbers = [n for n in np.unique(packed["segments"]) if n]
    apart = {name: np.zeros((len(numbers), 16), value.dtype) for name, value in packed.items()}
    for row, number in enumerate(numbers):
        inside = packed["segments"][0] == number
        for name, value in packed.items():
            apart[name][row, : inside.sum()] = value[0, inside]
        apart["segments"][row, : inside.sum()] = 1
    run = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, b, None, None)[0]["loss"][0]))
    found = [run(params, rows) for rows in (packed, apart)]
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found[0][1], found[1][1])


@pytest.fixture(scope="module")
def whole():
    """Loss and gradients of eight rows at once, with dropout on."""
    return cut(1)


def cut(parts: int):
    model = tiny(dropout=0.2, attention_dropout=0.1, windows=(3, 0))
    config = Config(objective=Causal(model=model, z_loss=1e-3), batch=8, micro_batches=parts)
    keys = jax.random.split(jax.random.key(0), 8)
    run = jax.jit(lambda params, rows: gradients(config, params, rows, None, keys))
    return jax.device_get(run(draw(model), batch()))


@pytest.mark.parametrize("parts", quick([2, 4], [4]))
def test_micro_batches(parts, whole):
    """Rows of unequal weight, one of them empty: sums and gradients do not depend on the cut."""
    gradient, sums, _ = whole
    found, found_sums, _ = cut(parts)
    for name, pair in sums.items():
        np.testing.assert_allclose(found_sums[name], pair, rtol=1e-5)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), found, gradient)


def test_gradient_is_that_of_the_mean(whole):
    """Divided by the weight of the whole batch, not by the number of micro-batches or rows."""
    gradient, sums, _ = whole
    model = tiny(dropout=0.2, attention_dropout=0.1, windows=(3, 0))
    objective = Causal(model=model, z_loss=1e-3)
    keys, rows = jax.random.split(jax.random.key(0), 8), batch()

    def mean(params):
        total, weight = objective.loss(params, rows, None, keys)[0]["loss"]
        return total / weight

    expected = jax.jit(jax.grad(mean))(draw(model))
    scale = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradient, expected)
    assert float(sums["loss"][1]) == pytest.approx(rows["weights"].sum())


def test_a_batch_of_no_weight_gives_no_gradient():
    objective = Causal(model=tiny())
    rows = batch(2) | {"weights": np.zeros((2, 16), np.float32)}
    config = Config(objective=objective, batch=2)
    gradient, sums, _ = jax.jit(lambda p: gradients(config, p, rows, None, None))(draw(objective.model))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient))
    assert float(sums["loss"][0]) == 0


def test_bfloat16_loss_is_near():
    objective = Causal(model=tiny())
    half = dataclasses.replace(objective, model=tiny(dtype="bfloat16"))
    params, rows = draw(objective.model), batch()
    full, low = (jax.jit(lambda p, o=o: o.loss(p, rows, None, None)[0]["loss"])(params) for o in (objective, half))
    assert low[0].dtype == jnp.float32
    assert float(low[0]) == pytest.approx(float(full[0]), rel=0.02)
    assert float(low[0]) != float(full[0])
