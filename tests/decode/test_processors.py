"""Penalties and bans: spec.md A.8, transformers on random rows, padding that must not count, use inside a loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from lm.decode.processors import History, Rules
from lm.errors import UserError

V, STOPS = 23, (3, 7)
SCORES = np.array([[2, 1, 0.5, -1, -2]], np.float32)


def history(rows, new, *, width=0, room=0, source=None):
    """Rows of tokens of which the last `new` are generated, the prompts left-padded to `width` with token 1."""
    prompts = [row[: len(row) - new] for row in rows]
    width = max(width, *map(len, prompts))
    tokens, segments = np.ones((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :], segments[i, width - len(prompt) :] = prompt, 1
    sources = {} if source is None else {"source_BS": source[0], "source_segments_BS": source[1]}
    found = History.begin(tokens, segments, max(room, new), **sources)
    for i in range(new):
        found = found.add(jnp.array([row[len(row) - new + i] for row in rows]))
    return found


def processed(rules, scores, *args, **kwargs):
    return np.asarray(jax.jit(rules.process)(scores, history(*args, **kwargs)))


def test_vectors_of_the_specification():
    found = processed(Rules(repetition_penalty=1.2), SCORES, [[0, 3, 0]], 1)
    np.testing.assert_allclose(found, [[2 / 1.2, 1, 0.5, -1.2, -2]], rtol=1e-6)
    found = processed(Rules(no_repeat_ngram=2), SCORES, [[1, 2, 3, 1]], 2)
    assert found.tolist() == [[2, 1, -np.inf, -1, -2]]


# What Hugging Face has for each rule, made from the rows' prompts.
NEW = 4
PAIRS = {
    "bias": (
        Rules(sequence_bias=(((4,), -2.0), ((0, 1), 3.0), ((0, 2), 1.5), ((1, 0, 2), -1.0))),
        lambda x: theirs.SequenceBiasLogitsProcessor({(4,): -2.0, (0, 1): 3.0, (0, 2): 1.5, (1, 0, 2): -1.0}),
    ),
    "encoder_repetition": (
        Rules(encoder_repetition_penalty=1.7),
        lambda x: theirs.EncoderRepetitionPenaltyLogitsProcessor(1.7, x[:, :-NEW]),
    ),
    "repetition": (Rules(repetition_penalty=1.3), lambda x: theirs.RepetitionPenaltyLogitsProcessor(1.3)),
    "repetition_below_1": (Rules(repetition_penalty=0.6), lambda x: theirs.RepetitionPenaltyLogitsProcessor(0.6)),
    "ngram_1": (Rules(no_repeat_ngram=1), lambda x: theirs.NoRepeatNGramLogitsProcessor(1)),
    "ngram_2": (Rules(no_repeat_ngram=2), lambda x: theirs.NoRepeatNGramLogitsProcessor(2)),
    "ngram_3": (Rules(no_repeat_ngram=3), lambda x: theirs.NoRepeatNGramLogitsProcessor(3)),
    "ngram_5": (Rules(no_repeat_ngram=5), lambda x: theirs.NoRepeatNGramLogitsProcessor(5)),
    "encoder_ngram_2": (
        Rules(encoder_no_repeat_ngram=2),
        lambda x: theirs.EncoderNoRepeatNGramLogitsProcessor(2, x[:, :-NEW]),
    ),
    "encoder_ngram_3": (
        Rules(encoder_no_repeat_ngram=3),
        lambda x: theirs.EncoderNoRepeatNGramLogitsProcessor(3, x[:, :-NEW]),
    ),
    "bad_words": (
        Rules(bad_words=((3,), (9,), (0, 1), (1, 2, 0), (2, 2)), stops=STOPS),
        lambda x: theirs.NoBadWordsLogitsProcessor([[3], [9], [0, 1], [1, 2, 0], [2, 2]], list(STOPS)),
    ),
    "min_length": (Rules(min_length=13, stops=STOPS), lambda x: theirs.MinLengthLogitsProcessor(13, list(STOPS))),
    "min_length_reached": (
        Rules(min_length=12, stops=STOPS),
        lambda x: theirs.MinLengthLogitsProcessor(12, list(STOPS)),
    ),
    "min_new": (
        Rules(min_new_tokens=NEW + 1, stops=STOPS),
        lambda x: theirs.MinNewTokensLengthLogitsProcessor(8, NEW + 1, list(STOPS)),
    ),
    "min_new_reached": (
        Rules(min_new_tokens=NEW, stops=STOPS),
        lambda x: theirs.MinNewTokensLengthLogitsProcessor(8, NEW, list(STOPS)),
    ),
    "forced_end": (
        Rules(forced_end=7, limit=NEW + 1),
        lambda x: theirs.ForcedEOSTokenLogitsProcessor(x.shape[1] + 1, 7),
    ),
    "exponential": (
        Rules(length_penalty_start=2, length_penalty_factor=1.4, stops=STOPS),
        lambda x: theirs.ExponentialDecayLengthPenalty((2, 1.4), list(STOPS), 8),
    ),
    "suppress": (Rules(suppress=(1, 5)), lambda x: theirs.SuppressTokensLogitsProcessor([1, 5])),
    "begin_suppress": (
        Rules(begin_suppress=(1, 5)),
        lambda x: theirs.SuppressTokensAtBeginLogitsProcessor([1, 5], 8),
    ),
    "renormalise": (Rules(renormalise=True), lambda x: theirs.LogitNormalization()),
}


def random_rows(count=64, length=12, alphabet=4):
    random = np.random.default_rng(0)
    rows = random.integers(0, alphabet, (count, length))
    return rows.tolist(), random.normal(0, 2, (count, V)).astype(np.float32)


@pytest.mark.parametrize("name", PAIRS)
def test_as_transformers(name):
    rules, make = PAIRS[name]
    rows, scores = random_rows()
    x = torch.tensor(rows)
    expected = make(x)(x, torch.tensor(scores)).numpy()
    np.testing.assert_allclose(processed(rules, scores, rows, NEW, room=9), expected, rtol=1e-6, atol=1e-6)
    if "reached" not in name and "begin" not in name:
        assert not np.array_equal(expected, scores)


def test_first_new_token_as_transformers():
    rows, scores = random_rows(length=1)
    x = torch.tensor(rows)
    expected = theirs.ForcedBOSTokenLogitsProcessor(5)(x, torch.tensor(scores)).numpy()
    np.testing.assert_array_equal(processed(Rules(forced_begin=5), scores, rows, 0, room=4), expected)
    expected = theirs.SuppressTokensAtBeginLogitsProcessor([5, 6], 1)(x, torch.tensor(scores)).numpy()
    np.testing.assert_array_equal(processed(Rules(begin_suppress=(5, 6)), scores, rows, 0, room=4), expected)


def test_all_together_in_the_order_of_transformers():
    rows, scores = random_rows()
    names = ["bias", "repetition", "ngram_3", "encoder_ngram_2", "bad_words", "min_new", "exponential", "renormalise"]
    fields, x, expected = {}, torch.tensor(rows), torch.tensor(scores)
    for name in names:
        rules, make = PAIRS[name]
        fields |= {key: value for key, value in vars(rules).items() if value != getattr(Rules(), key)}
        expected = make(x)(x, expected)
    np.testing.assert_allclose(processed(Rules(**fields), scores, rows, NEW), expected.numpy(), rtol=1e-5, atol=1e-5)


EVERYTHING = Rules(
    stops=STOPS,
    sequence_bias=(((0, 1), 3.0),),
    encoder_repetition_penalty=1.2,
    repetition_penalty=1.3,
    frequency_penalty=0.3,
    presence_penalty=0.4,
    no_repeat_ngram=3,
    encoder_no_repeat_ngram=4,
    bad_words=((1, 1), (2, 2, 2)),
    min_length=11,
)


def test_padding_does_not_count():
    """Hugging Face counts the padding of left-padded rows as text: here a row is what it would be alone."""
    rows = [[0, 1, 2, 0, 1, 0, 1, 2, 0], [2, 1, 0, 2], [1, 1, 2, 3, 1, 1]]
    scores = np.random.default_rng(1).normal(0, 2, (3, V)).astype(np.float32)
    together = processed(EVERYTHING, scores, rows, 3, width=16, room=8)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(together[i : i + 1], processed(EVERYTHING, scores[i : i + 1], [row], 3))
    padded = torch.tensor([[1] * (9 - len(row)) + row for row in rows])
    wrong = theirs.RepetitionPenaltyLogitsProcessor(1.3)(padded, torch.tensor(scores)).numpy()
    right = processed(Rules(repetition_penalty=1.3), scores, rows, 3)
    np.testing.assert_allclose(right[0], wrong[0], rtol=1e-6)
    assert right[1, 1] == wrong[1, 1] != scores[1, 1]  # a 1 of its own
    alone = processed(Rules(repetition_penalty=1.3), scores[:1], [[0, 2]], 1, width=5)
    assert alone[0, 1] == scores[0, 1]  # the padding is token 1


def test_shorter_than_the_ngram_bans_nothing():
    scores = np.zeros((1, V), np.float32)
    for size in (3, 4, 50):
        assert (processed(Rules(no_repeat_ngram=size), scores, [[1, 1]], 1, width=4, room=3) == 0).all()
    assert (processed(Rules(bad_words=((1, 1, 1, 2),)), scores, [[1, 1]], 1, width=4, room=3) == 0).all()


def test_the_source_of_an_encoder_is_what_its_penalties_look_at():
    source = np.array([[1, 2, 3, 0, 0], [4, 5, 4, 6, 5]]), np.array([[1, 1, 1, 0, 0], [1] * 5])
    scores = np.full((2, V), 2.0, np.float32)
    found = processed(Rules(encoder_repetition_penalty=2.0), scores, [[9], [9]], 0, room=4, source=source)
    assert [np.flatnonzero(row == 4).tolist() for row in found] == [[1, 2, 3], [4, 5, 6]]  # made likelier
    found = processed(Rules(encoder_no_repeat_ngram=2), scores, [[9, 2], [9, 4]], 1, room=4, source=source)
    assert [np.flatnonzero(np.isinf(row)).tolist() for row in found] == [[3], [5, 6]]


def test_frequency_and_presence_count_generated_tokens():
    rules = Rules(frequency_penalty=0.5, presence_penalty=0.25)
    found = processed(rules, SCORES, [[0, 0, 3, 3, 1, 3]], 3)  # the prompt: 0 0 3
    np.testing.assert_allclose(found, [[2, 1 - 0.75, 0.5, -1 - 1.25, -2]], rtol=1e-6)


def test_a_forced_prefix_then_free():
    scores = np.random.default_rng(2).normal(size=(2, V)).astype(np.float32)
    rules = Rules(forced_prefix=(4, 2), bad_words=((4,),))
    for count, token in enumerate((4, 2)):
        found = processed(rules, scores, [[1] * (1 + count)] * 2, count, room=4)
        assert [np.flatnonzero(np.isfinite(row)).tolist() for row in found] == [[token]] * 2
    found = processed(rules, scores, [[1, 4, 2]] * 2, 2, room=4)
    assert np.isfinite(found).sum(1).tolist() == [V - 1] * 2


def test_a_row_with_everything_banned_is_let_go():
    scores = np.zeros((2, 4), np.float32)
    found = processed(Rules(no_repeat_ngram=1), scores, [[0, 1, 2, 3], [0, 1, 2, 2]], 2)
    assert found.tolist() == [[0, 0, 0, 0], [-np.inf, -np.inf, -np.inf, 0]]


def test_rows_are_selected_with_their_source():
    source = np.array([[1, 2], [3, 4]]), np.ones((2, 2))
    picked = history([[5, 6], [7, 8]], 1, source=source).select(jnp.array([1, 1, 0]))
    assert picked.tokens_BT.tolist() == [[7, 8], [7, 8], [5, 6]]
    assert picked.source()[0].tolist() == [[3, 4], [3, 4], [1, 2]]


def test_in_a_loop_no_ngram_comes_twice():
    rules, count = Rules(no_repeat_ngram=2), 15
    scores = jnp.asarray(np.random.default_rng(3).normal(size=(5, 20)), jnp.float32)

    @jax.jit
    def loop(now):
        return jax.lax.fori_loop(0, count, lambda _, now: now.add(rules.process(scores, now).argmax(-1)), now)

    found = np.asarray(loop(history([[0, 1]] * 5, 0, room=count)).tokens_BT)
    pairs = [list(itertools.pairwise(row)) for row in found.tolist()]
    assert all(len(set(one)) == len(one) == 16 for one in pairs)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"repetition_penalty": 0.0}, "1 turns it off"), ({"no_repeat_ngram": -1}, "number of tokens"),
     ({"presence_penalty": float("nan")}, "0 turns it off"), ({"forced_end": 3}, "limit"),
     ({"bad_words": ((),)}, "no tokens")],
)  # fmt: skip
def test_wrong_values_are_refused(wrong, words):
    with pytest.raises(UserError) as error:
        Rules(**wrong)
    assert words in str(error.value)
