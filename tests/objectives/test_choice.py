"""The right one of several options, and cosines of pairs."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.data.corpus.corpus import Corpus
from lm.data.rows.templates import Frame
from lm.data.types import Example, ExampleSet
from lm.errors import UserError
from lm.models.two_stream import XLNet
from lm.objectives.choice import Choose
from lm.objectives.finetune import network
from lm.objectives.finetune.network import Rows
from lm.objectives.rank import Rank
from lm.sharding import unbox
from tests.objectives.labelled import model, words

torch = pytest.importorskip("torch")


def ready(**fields) -> Choose:
    objective = Choose(**{"model": model(), "rows": Rows(length=12, row=60), "most": 4, **fields})
    return dataclasses.replace(objective, frame=Frame(words(), "bert"))


def example(label, options=("one two", "three", "four five six"), **more) -> Example:
    return Example({"context": "seven eight", "options": list(options), "label": label, **more}, "here")


@pytest.mark.parametrize(("label", "right"), [(2, 2), ("1", 1), ("B", 1), ("c", 2), ("three", 1)])
def test_labels_are_numbers_letters_or_texts(label, right):
    assert ready().right(example(label)) == right


@pytest.mark.parametrize("label", [3, "D", "ten", "", -1, "²", "ß", True])
def test_a_label_that_is_no_option_is_refused(label):
    with pytest.raises(UserError, match="here: 'label' is"):
        ready().right(example(label))


@pytest.mark.parametrize(("options", "label", "right"), [
    (("1", "2", "3"), 1, 1),  # a number of JSON is a number
    (("1", "2", "3"), "B", 1),
    (("0", "1", "2"), "1", 1),  # both readings say the same
    (("5", "7"), "7", 1),  # no option has that number
    (("B", "C"), 0, 0),
    ((4, 2.5), "2.5", 1),
    (("one ", "two"), " one", 0),
])  # fmt: skip
def test_labels_beside_options_that_look_like_labels(options, label, right):
    assert ready().right(example(label, options)) == right


@pytest.mark.parametrize(("options", "label", "message"), [
    (("1", "2", "3"), "1", "'1': option 0 by its text, option 1 by its number; give its letter"),
    (("B", "C"), "B", "'B': option 0 by its text, option 1 by its letter; give its number"),
])  # fmt: skip
def test_a_label_of_two_options_is_refused(options, label, message):
    with pytest.raises(UserError, match=f"here: 'label' is {message}"):
        ready().right(example(label, options))


def corpus(train, held=()) -> Corpus:
    sets = [ExampleSet("x", list(side)) for side in (train, held)]
    return Corpus(words(), ((1.0, sets[0]),), sets[1], "x", 0, "", None)


@pytest.mark.parametrize(("values", "message"), [
    ({"options": ["one", " "]}, "here: option 1 is empty; mend or remove the example"),
    ({"options": ["one", None]}, "here: 'options' has None in its list, not a text"),
    ({"options": ["one", "\u200b"]}, "here: the tokenizer leaves nothing of option 1"),
    ({"context": ""}, "here: 'context' is empty"),
    ({"asked": "\n"}, "here: 'asked' is empty"),
])  # fmt: skip
def test_options_without_words_are_refused(values, message):
    good = Example({"context": "six", "options": ["one", "two"], "label": 0, "asked": "ten"}, "good")
    odd = Example({**good.values, **values}, "here")
    question = "asked" if "asked" in values else ""
    for sides in (([good, odd],), ([good], [odd])):
        with pytest.raises(UserError, match=message):
            ready(question=question, most=0, rows=Rows(length=12)).study(corpus(*sides))


@pytest.mark.parametrize(("values", "message"), [
    ({"sentence2": " "}, "here: 'sentence2' is empty; mend or remove the example"),
    ({"sentence1": "\u200b"}, "here: the tokenizer leaves nothing of 'sentence1'"),
    ({"score": "nan"}, "here: 'score' is 'nan', not a number to learn; mend it"),
    ({"score": float("inf")}, "here: 'score' is inf, not a number to learn"),
])  # fmt: skip
def test_pairs_that_cannot_be_compared_are_refused(values, message):
    good = Example({"sentence1": "one", "sentence2": "two", "score": 1.0}, "good")
    odd = Example({**good.values, **values}, "here")
    for sides in (([good, odd],), ([good], [odd])):
        found, objective = corpus(*sides), Rank(model=model(), rows=Rows(length=16))
        with pytest.raises(UserError, match=message):
            objective.resolve(words()).study(found).records.open(ExampleSet("both", [good, odd]))


def test_options_stand_behind_context_and_question():
    found = ready(question="asked", longest=3).lay(example(0, asked="nine ten"))
    names = ready().frame.tokenizer.decode
    assert names(found[0].tokens, special=True) == "[CLS] seven eight [SEP] ten one two [SEP]"  # the option is kept
    apart = Choose(model=model(), options=("a", "b"), context="")
    apart = dataclasses.replace(apart, frame=Frame(words(), "bert"))
    laid = apart.lay(Example({"a": "one", "b": "two"}, "here"))
    assert [one.tokens.tolist() for one in laid] == [[2, 5, 3], [2, 6, 3]]


def test_the_loss_is_over_the_options_that_are_there():
    objective = ready()
    examples = [example(1), example(0, ("one", "two")), example(3, ("one", "two", "three", "four"))]
    halves = [[(one, 0) for one in part] for part in (examples[:2], examples[2:])]
    rows = [objective.corrupt(None, {"examples": half, "room": 2}) for half in halves]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    params = unbox(objective.init(jax.random.key(0), batch))
    params["classifier"]["kernel"] += np.random.default_rng(0).normal(size=params["classifier"]["kernel"].shape)
    logits = np.asarray(objective.logits(params, batch))
    sums, _ = objective.loss(params, batch, None, None)
    expected, hits = 0.0, 0
    for (b, k), count, right in zip(((0, 0), (0, 1), (1, 0)), (3, 2, 4), (1, 0, 3)):
        own = torch.tensor(logits[b, k, :count])[None]
        expected += float(torch.nn.CrossEntropyLoss()(own, torch.tensor([right])))
        hits += int(own.argmax()) == right
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], expected / 3, rtol=1e-5)
    assert float(sums["accuracy"][0]) == hits
    found = jax.device_get(objective.predict(params, batch))
    outcome = objective.outcomes({"examples": [(one, 0) for one in examples[:2]]}, {k: v[0] for k, v in found.items()})
    assert [len(one["probabilities"]) for one in outcome] == [3, 2]
    np.testing.assert_allclose([sum(one["probabilities"]) for one in outcome], 1, rtol=1e-5)


def test_a_network_that_sees_the_whole_row_is_refused():
    for kind in (Choose, Rank):
        with pytest.raises(UserError, match="all of which XLNet sees"):
            kind(model=XLNet(width=16, depth=1, heads=2))


def test_cosines_are_those_of_the_texts_alone():
    objective = Rank(model=model(), top=5.0, rows=Rows(length=16, row=64), frame=Frame(words(), "bert"))
    pairs = [("one two three", "four", 5), ("five", "six seven", 1), ("one", "one", "2.5")]
    examples = [Example({"sentence1": a, "sentence2": b, "score": s}, "x") for a, b, s in pairs]
    row = objective.corrupt(None, {"examples": [(one, 0) for one in examples], "room": 4})
    batch = {name: x[None] for name, x in row.items()}
    params = unbox(objective.init(jax.random.key(0), batch))
    vectors = []
    for text in (text for pair in pairs for text in pair[:2]):
        laid = objective.frame.join([objective.frame.encode(text)], 16)
        alone, _ = network.lay_row([laid], objective.model, objective.frame, len(laid.tokens))
        h = network.states(objective.model, params, {name: x[None] for name, x in alone.items()}, None, False)
        vectors.append(torch.tensor(np.asarray(h)[0].mean(0)))
    expected = [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in zip(vectors[::2], vectors[1::2])]
    np.testing.assert_allclose(objective.cosines(params, batch)[0, :3], expected, rtol=1e-4)
    sums, _ = objective.loss(params, batch, None, None)
    loss = np.mean((np.array(expected) - [1, 0.2, 0.5]) ** 2)
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], loss, rtol=1e-4)
    assert expected[2] == pytest.approx(1, abs=1e-5)
