"""The right one of several options, and cosines of pairs."""

import jax
import numpy as np
import pytest

from lm.data.examples import Example
from lm.data.framing import Frame
from lm.errors import UserError
from lm.models.two_stream import XLNet
from lm.objectives import trunk
from lm.objectives.choice import Choose
from lm.objectives.rank import Rank
from lm.objectives.trunk import Rows
from lm.sharding import unbox
from tests.objectives.labelled import model, words

torch = pytest.importorskip("torch")


def ready(**fields) -> Choose:
    objective = Choose(**{"model": model(), "rows": Rows(length=12, row=60), "most": 4, **fields})
    return trunk.knowing(objective, Frame(words(), "bert"))


def example(label, options=("one two", "three", "four five six"), **more) -> Example:
    return Example({"context": "seven eight", "options": list(options), "label": label, **more}, "here")


@pytest.mark.parametrize(("label", "right"), [(2, 2), ("1", 1), ("B", 1), ("c", 2), ("three", 1)])
def test_labels_are_numbers_letters_or_texts(label, right):
    assert ready().right(example(label)) == right


@pytest.mark.parametrize("label", [3, "D", "ten", "", -1])
def test_a_label_that_is_no_option_is_refused(label):
    with pytest.raises(UserError, match="here: 'label' is"):
        ready().right(example(label))


def test_options_stand_behind_context_and_question():
    found = ready(question="asked", longest=3).lay(example(0, asked="nine ten"))
    names = ready().frame.tokenizer.decode
    assert names(found[0].tokens, special=True) == "[CLS] seven eight [SEP] ten one two [SEP]"  # the option is kept
    apart = Choose(model=model(), options=("a", "b"), context="")
    apart = trunk.knowing(apart, Frame(words(), "bert"))
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
    objective = trunk.knowing(Rank(model=model(), top=5.0, rows=Rows(length=16, row=64)), Frame(words(), "bert"))
    pairs = [("one two three", "four", 5), ("five", "six seven", 1), ("one", "one", "2.5")]
    examples = [Example({"sentence1": a, "sentence2": b, "score": s}, "x") for a, b, s in pairs]
    row = objective.corrupt(None, {"examples": [(one, 0) for one in examples], "room": 4})
    batch = {name: x[None] for name, x in row.items()}
    params = unbox(objective.init(jax.random.key(0), batch))
    vectors = []
    for text in (text for pair in pairs for text in pair[:2]):
        laid = objective.frame.join([objective.frame.encode(text)], 16)
        alone, _ = trunk.lay_row([laid], objective.model, objective.frame, len(laid.tokens))
        h = trunk.states(objective.model, params, {name: x[None] for name, x in alone.items()}, None, False)
        vectors.append(torch.tensor(np.asarray(h)[0].mean(0)))
    expected = [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in zip(vectors[::2], vectors[1::2])]
    np.testing.assert_allclose(objective.cosines(params, batch)[0, :3], expected, rtol=1e-4)
    sums, _ = objective.loss(params, batch, None, None)
    loss = np.mean((np.array(expected) - [1, 0.2, 0.5]) ** 2)
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], loss, rtol=1e-4)
    assert expected[2] == pytest.approx(1, abs=1e-5)
