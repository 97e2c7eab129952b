"""The original Transformer's objective and Mask-Predict's: rows of pairs, smoothed losses, lengths, what sees what."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.objectives.conditional import Conditional
from lm.objectives.rows import read
from lm.objectives.seq2seq import Seq2seq
from lm.sharding import unbox
from tests.models.reference import tiny
from tests.objectives.pairs import BEGIN, END, MASK, TOKENIZER, draw, from_bart, split, twice


def pairs(*sizes: tuple[int, int], seed: int = 0):
    """A record of pairs with these numbers of tokens."""
    rng = np.random.default_rng(seed)
    return {"documents": [[rng.integers(0, BEGIN, n, dtype=np.int32) for n in size] for size in sizes]}


def batch(objective, *records) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [objective.corrupt(rng, record) for record in records]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


# -- pairs, left to right ----------------------------------------------------------------------------------------------


def test_row_of_two_pairs():
    objective = Seq2seq(model=twice(context=8)).resolve(TOKENIZER)
    record = {"documents": [[np.array([1, 2, 3]), np.array([4])], [np.array([5]), np.array([6, 7, 8])]]}
    row = objective.corrupt(np.random.default_rng(0), record)
    for name, expected in {
        "source": [1, 2, 3, END, 5, END, 0, 0],
        "source_segments": [1, 1, 1, 1, 2, 2, 0, 0],
        "source_positions": [0, 1, 2, 3, 0, 1, 0, 0],
        "tokens": [END, 4, END, 6, 7, 8, 0, 0],
        "targets": [4, END, 6, 7, 8, END, 0, 0],
        "segments": [1, 1, 2, 2, 2, 2, 0, 0],
        "positions": [0, 1, 0, 1, 2, 3, 0, 0],
        "weights": [1, 1, 1, 1, 1, 1, 0, 0],
    }.items():
        np.testing.assert_array_equal(row[name], expected)
    assert objective.show(PLAIN, row).splitlines() == [
        "source   '1 2 3 26'", "target   '4 26'", "source   '5 26'", "target   '6 7 8 26'",
    ]  # fmt: skip


class PLAIN:
    @staticmethod
    def decode(ids, special=False):
        return " ".join(str(i) for i in ids)


def test_pairs_that_do_not_fit_and_empty_ones():
    """A long pair loses its ends but not its end token; an empty side is an end token alone; no pair: all padding."""
    objective = Seq2seq(model=twice(context=8)).resolve(TOKENIZER)
    row = objective.corrupt(np.random.default_rng(0), pairs((20, 20)))
    assert row["source"][-1] == row["targets"][-1] == END
    row = objective.corrupt(np.random.default_rng(0), pairs((0, 0)))
    assert (row["source"][0], row["tokens"][0], row["targets"][0], row["weights"].sum()) == (END, END, END, 1)
    row = objective.corrupt(np.random.default_rng(0), {"documents": []})
    assert not any(value.any() for value in row.values())


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def test_label_smoothing_is_fairseq_s():
    """(1 - e - e/(V-1)) nll + e/(V-1) sum over v of -log p(v), recomputed in float64 from the logits."""
    objective = Seq2seq(model=twice(), smoothing=0.1).resolve(TOKENIZER)
    params, rows = draw(objective.model), batch(objective, pairs((3, 5), (6, 2), seed=1), pairs((9, 20), seed=2))
    run = jax.jit(lambda p, b: (objective.loss(p, b, None, None)[0], scores(objective.model, p, b)))
    sums, logits = run(params, rows)
    found = log_softmax(logits)
    nll = -np.take_along_axis(found, rows["targets"][..., None], -1)[..., 0]
    share = 0.1 / 28
    smoothed = (1 - 0.1 - share) * nll - share * found.sum(-1)
    weights = rows["weights"]
    assert float(sums["loss"][0]) == pytest.approx((weights * smoothed).sum(), rel=1e-5)
    assert float(sums["nll"][0]) == pytest.approx((weights * nll).sum(), rel=1e-5)
    assert float(sums["accuracy"][0]) == (weights * (found.argmax(-1) == rows["targets"])).sum()
    assert float(objective.weights(rows)["loss"]) == weights.sum() == 30


def scores(model, params, rows):
    h_BTD, head = read(model, params, rows)
    return head.logits(h_BTD)


@pytest.mark.parametrize("kind", [Seq2seq, Conditional])
def test_packed_loss_and_gradient_are_those_of_separate_rows(kind):
    objective = kind(model=twice(), smoothing=0.1).resolve(TOKENIZER)
    packed = batch(objective, pairs((3, 5), (6, 2), (1, 9), seed=3))
    apart = split(packed)
    empty = {name: np.zeros_like(value[1:]) for name, value in apart.items()}  # one compilation for both
    packed = {name: np.concatenate([value, empty[name]]) for name, value in packed.items()}

    def total(params, rows):
        sums, _ = objective.loss(params, rows, None, None)
        return sum(scale * sums[name][0] for name, scale in objective.scales.items())

    run = jax.jit(jax.value_and_grad(total))
    found = [run(parameters(objective), rows) for rows in (packed, apart)]
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found[0][1], found[1][1])


def parameters(objective, seed: int = 0):
    params = draw(objective.model, seed)
    if not isinstance(objective, Conditional):
        return params
    table = np.random.default_rng(seed).normal(size=(objective.model.context + 1, objective.model.width))
    return {**params, "lengths": {"table": jnp.asarray(table, jnp.float32)}}


def test_parity_with_marian():
    """The original shape, sinusoids and post-norm, against Hugging Face's Marian with random weights: logits and loss."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.MarianConfig(
        vocab_size=29, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=24, dropout=0.0,
        activation_function="relu", scale_embedding=True, pad_token_id=0, eos_token_id=END, decoder_start_token_id=END,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.MarianMTModel(config).eval()
    for name, weights in theirs.named_parameters():
        if "embed_positions" not in name:
            torch.nn.init.normal_(weights, std=0.3)
    shape = tiny(context=24, positions="sinusoidal", placement="post", activation="relu", embed_scale=math.sqrt(12))
    objective = Seq2seq(model=EncoderDecoder(encoder=shape, decoder=shape)).resolve(TOKENIZER)
    ours = from_bart({k: v.detach().numpy() for k, v in theirs.state_dict().items()}, heads=3)
    rows = batch(objective, pairs((5, 9), seed=1), pairs((8, 9), seed=2))
    logits, sums = jax.jit(lambda p, b: (scores(objective.model, p, b), objective.loss(p, b, None, None)[0]))(ours, rows)
    with torch.no_grad():
        result = theirs(
            input_ids=torch.tensor(rows["source"]),
            attention_mask=torch.tensor(rows["source_segments"]),
            decoder_input_ids=torch.tensor(rows["tokens"]),
            labels=torch.tensor(np.where(rows["weights"] > 0, rows["targets"], -100)).long(),
        )
    np.testing.assert_allclose(logits[:, :10], result.logits[:, :10], atol=1e-4)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(float(result.loss), abs=1e-4)


# -- all at once -------------------------------------------------------------------------------------------------------


def conditional(**changes) -> Conditional:
    return Conditional(**{"model": twice(embed_norm=False, offset=0), **changes}).resolve(TOKENIZER)


def test_row_of_masked_pairs():
    objective = conditional(model=twice(context=10))
    record = {"documents": [[np.array([1, 2, 3]), np.array([4])], [np.array([5]), np.array([6, 7, 8])]]}
    row = objective.corrupt(np.random.default_rng(0), record)
    for name, expected in {
        "source": [0, 1, 2, 3, END, 0, 5, END, 0, 0],
        "source_segments": [1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        "source_positions": [0, 0, 1, 2, 3, 0, 0, 1, 0, 0],
        "lengths": [2, 0, 0, 0, 0, 4, 0, 0, 0, 0],
        "targets": [4, END, 6, 7, 8, END, 0, 0, 0, 0],
        "segments": [1, 1, 2, 2, 2, 2, 0, 0, 0, 0],
        "positions": [0, 1, 0, 1, 2, 3, 0, 0, 0, 0],
    }.items():
        np.testing.assert_array_equal(row[name], expected)
    masked = row["weights"] > 0
    np.testing.assert_array_equal(row["tokens"], np.where(masked, MASK, row["targets"]))
    assert "lengths  [2, 4]" in objective.show(PLAIN, row)


@pytest.mark.parametrize("run", [False, True])
def test_numbers_and_places_of_masked_tokens_are_uniform(run):
    """20,000 pairs of 6 tokens: each number 1 ... 5 equally often, each place too (but for `run`, where the middle is
    reached more often), within 5 standard errors; a pair of one token is masked whole."""
    objective, rng = conditional(run=run), np.random.default_rng(4)
    segments = np.repeat(np.arange(1, 5), (6, 6, 6, 1)).astype(np.int32)
    segments = np.concatenate([segments, [0, 0]])
    numbers, places, draws = np.zeros(7), np.zeros(6), 20_000
    for _ in range(draws // 3 + 1):
        chosen = objective.choose(rng, segments)
        assert chosen[18]
        assert not chosen[19:].any()
        for part in chosen[:18].reshape(3, 6):
            numbers[part.sum()] += 1
            places += part
            if run:
                assert np.count_nonzero(np.diff(part)) <= 2 - part[0] - part[-1]
    total = numbers.sum()
    assert numbers[0] == numbers[6] == 0
    assert np.abs(numbers[1:6] / total - 0.2).max() < 5 * math.sqrt(0.2 * 0.8 / total)
    if run:
        assert places[2] > 1.5 * places[0]
        np.testing.assert_allclose(places / total, places[::-1] / total, atol=5 * math.sqrt(0.5 / total))
    else:
        assert np.abs(places / total - 0.5).max() < 5 * math.sqrt(0.25 / total)  # mean of n / 6


def test_masked_and_length_losses():
    """(1 - e) nll + e/V sum over v of -log p(v) of the masked tokens, and -log p(length) without length 0; both sums are
    divided by the number of masked tokens."""
    objective = conditional(smoothing=0.1)
    params = parameters(objective)
    rows = batch(objective, pairs((3, 5), (6, 2), seed=1), pairs((9, 20), seed=2))

    def run(params, rows):
        source_BSD, h_BTD, _ = objective.states(params, rows)
        sums = objective.loss(params, rows, None, None)[0]
        return sums, objective.head(params).logits(h_BTD), source_BSD, objective.predict(params, rows)

    sums, logits, source_BSD, guess = jax.jit(run)(params, rows)
    found, weights = log_softmax(logits), rows["weights"]
    nll = -np.take_along_axis(found, rows["targets"][..., None], -1)[..., 0]
    smoothed = 0.9 * nll - 0.1 / 29 * found.sum(-1)
    assert float(sums["masked"][0]) == pytest.approx((weights * smoothed).sum(), rel=1e-5)
    assert float(sums["nll"][0]) == pytest.approx((weights * nll).sum(), rel=1e-5)
    table = np.asarray(params["lengths"]["table"], np.float64)
    scores_BSL = np.asarray(source_BSD, np.float64) @ table.T
    scores_BSL[..., 0] = -np.inf
    slots = rows["lengths"] > 0
    expected = -log_softmax(scores_BSL[slots])[np.arange(slots.sum()), rows["lengths"][slots]]
    assert float(sums["length"][0]) == pytest.approx(expected.sum(), rel=1e-5)
    np.testing.assert_array_equal(guess["lengths"][slots], scores_BSL[slots].argmax(-1))
    masked = weights.sum()
    assert {name: float(value) for name, value in objective.weights(rows).items()} == {
        "masked": masked,
        "length": masked,
    }
    assert float(sums["length_nll"][1]) == 3


def test_slots_and_targets_see_what_they_may():
    """A target's state depends on all of its own target and source, exactly not on another pair's; the decoder does not
    read the slot's state, so a change of the slot's vector reaches it through the encoder only."""
    objective = conditional()
    params, rows = parameters(objective), batch(objective, pairs((3, 4), (4, 3), (2, 2), seed=5))
    pair = Seq2Seq(objective.model)
    words = {k: v for k, v in params.items() if k != "lengths"}
    rows = {name: jnp.asarray(value) for name, value in rows.items()}
    slots, own = np.asarray(rows["lengths"][0]) > 0, np.asarray(rows["source_segments"][0])
    seen = jnp.where(rows["lengths"] > 0, 0, rows["source_segments"])

    def decode(source_BSD):
        place = rows["tokens"], rows["positions"], rows["segments"]
        source = {"source_BSD": source_BSD, "source_segments_BS": seen}
        return pair.apply({"params": words}, *place, causal=False, method="decode", **source)[0]

    source_BSD = jax.jit(lambda p: objective.states(p, rows)[0])(params)
    gradient = np.abs(np.asarray(jax.jit(jax.jacrev(decode))(source_BSD))[:, :, 0]).max((1, 3))
    target = np.asarray(rows["segments"][0])
    allowed = (target[:, None] == own[None]) & ~slots[None] & (target[:, None] > 0)
    real = target > 0
    assert (gradient[real][~allowed[real]] == 0).all()
    assert (gradient[allowed] > 0).all()


def test_masked_tokens_see_both_sides():
    """Not causal: a later token of the target changes the states before it, another pair's none."""
    objective = conditional()
    params, rows = parameters(objective), batch(objective, pairs((3, 6), (4, 5), seed=6))
    run = jax.jit(lambda p, b: objective.states(p, b)[1][0])
    before = run(params, rows)
    changed = {**rows, "tokens": rows["tokens"].copy()}
    changed["tokens"][0, 5] = (rows["tokens"][0, 5] + 1) % BEGIN
    moved = np.abs(np.asarray(run(params, changed) - before)).max(-1)
    assert (moved[:7] > 0).all()
    assert (moved[7:13] == 0).all()


def test_parameters_have_names_and_places_for_lengths():
    objective = conditional()
    rows = batch(objective, pairs((3, 4)))
    shapes = unbox(jax.eval_shape(objective.init, jax.random.key(0), rows))
    assert shapes["lengths"]["table"].shape == (25, 12)
    assert jax.tree.structure(shapes) == jax.tree.structure(parameters(objective))


def test_what_a_row_may_hold():
    """The slot and the end are counted: rows of many short pairs hold all of each pair."""
    from lm.data.corpus.store import Tokens

    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 6, (200, 2))
    documents = [np.concatenate([rng.integers(0, 20, a), [28], rng.integers(0, 20, b)]) for a, b in sizes]
    tokens = Tokens.of(documents, 28, 29)
    for objective in (conditional(), Seq2seq(model=twice()).resolve(TOKENIZER)):
        opened = objective.records.open(tokens)
        rows = [objective.corrupt(rng, opened.held_out(rng, i)) for i in range(opened.once)]
        assert sum(row["segments"].max() for row in rows) == 200
        assert sum(np.count_nonzero(row["source"] == END) for row in rows) == 200
        assert sum(np.count_nonzero(row["targets"] == END) for row in rows) == 200
    alone = dataclasses.replace(objective, pack=False)
    assert alone.records.open(tokens).once == 200
