"""The greedy search on a classifier simple enough to know its best move."""

import itertools

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.attacks.adversarial import attack, attacks

WEIGHTS = {"great": 2.0, "good": 1.0, "fine": 0.4, "okay": 0.1, "bad": -1.0, "awful": -2.0, "dull": -0.6, "film": 0.05}
SYNONYMS = {"great": ["good", "fine"], "good": ["okay", "fine"], "bad": ["awful", "dull"], "film": ["movie"]}


def score(text):
    return sum(WEIGHTS.get(word.strip(".,!?").lower(), 0) for word in text.split()) - 0.5


def predict(texts):
    p = 1 / (1 + np.exp(-np.array([score(t) for t in texts])))
    return np.stack([1 - p, p], 1)


def synonyms(word):
    return SYNONYMS.get(word.lower(), [])


@pytest.mark.parametrize("order", ["deletion", "saliency"])
def test_the_strongest_word_goes_first(order):
    found = attack("A great, good film!", 1, predict, synonyms, order)
    assert found.flipped
    assert found.changed == "A fine, okay movie!"
    assert found.replaced == (("great", "fine"), ("good", "okay"), ("film", "movie"))
    assert found.probability == pytest.approx(predict([found.changed])[0, 1])
    asked = 1 + 4 + (2 + 2 + 1 if order == "saliency" else 0) + 2 + 2 + 1
    assert found.queries == asked


def test_greedy_is_as_good_as_trying_everything_here():
    """On sums of words the greedy search finds a flip wherever one exists."""
    words = [*SYNONYMS, "a", "dull"]
    for text in map(" ".join, itertools.product(words, repeat=3)):
        label = int(predict([text])[0].argmax())
        found = attack(text, label, predict, synonyms)
        every = [" ".join(choice) for choice in itertools.product(*([w, *synonyms(w)] for w in text.split()))]
        possible = (predict(every).argmax(1) != label).any()
        assert found.flipped == possible, text
        assert (predict([found.changed])[0].argmax() != label) == found.flipped
        changed = [pair for pair in zip(text.split(), found.changed.split()) if pair[0] != pair[1]]
        assert sorted(changed) == sorted(found.replaced)


def test_nothing_is_tried_where_the_model_is_wrong():
    found = attack("a great film", 0, predict, synonyms)
    assert (found.was_right, found.flipped, found.queries, found.changed) == (False, False, 1, "a great film")


def test_no_more_words_than_allowed():
    found = attack("a great good film", 1, predict, synonyms, most=0.25)
    assert len(found.replaced) == 1
    assert not found.flipped


def test_capitals_and_punctuation_stay():
    found = attack("GREAT! Good?", 1, predict, synonyms)
    assert found.changed == "FINE! Okay?"


def test_a_word_without_helpful_synonyms_stays():
    found = attack("great film", 1, predict, lambda word: {"film": ["great"], "great": ["great", "GREAT", ""]}.get(word, []))
    assert found.changed == "great film"
    assert not found.flipped


def test_figures():
    texts = ["a great good film", "a great film", "bad", "a film"]
    found, each = attacks(texts, [1, 1, 0, 1], predict, synonyms)
    assert [a.was_right for a in each] == [True, True, True, False]
    assert [a.flipped for a in each] == [True, True, False, False]
    assert found["clean"].value == 0.75
    assert found["attacked"].value == 0.25
    assert found["delta"].value == -0.5
    assert found["success"].value == pytest.approx(2 / 3)
    assert found["changed_words"].value == pytest.approx(np.mean([len(a.replaced) / a.words for a in each[:2]]))
    assert found["queries"].value == pytest.approx(np.mean([a.queries for a in each[:3]]))


def test_no_words_and_no_flips():
    found, (only,) = attacks(["..."], [0], predict, synonyms)
    assert (only.words, only.queries) == (0, 1)
    assert "changed_words" not in found


def test_mistakes_are_told():
    with pytest.raises(UserError, match="did you mean 'deletion'"):
        attack("a", 0, predict, synonyms, "deletions")
    with pytest.raises(UserError, match="label 2 is none of the 2"):
        attack("a", 2, predict, synonyms)
    with pytest.raises(UserError, match="2 texts, 1 labels"):
        attacks(["a", "b"], [0], predict, synonyms)
    with pytest.raises(UserError, match="predict returned"):
        attack("a", 0, lambda texts: np.ones(3), synonyms)
