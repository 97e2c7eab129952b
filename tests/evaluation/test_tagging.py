"""Entities as seqeval counts them, on random tags of every scheme."""

import warnings

import numpy as np
import pytest
import seqeval.scheme
from hypothesis import given, settings
from hypothesis import strategies as hs
from seqeval import metrics as se
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_scores

from lm.errors import UserError
from lm.evaluation.metrics.tagging import SCHEMES, Span, entities, mistakes, spans


def sentences(letters: str):
    tag = hs.one_of(hs.just("O"), hs.builds("{}-{}".format, hs.sampled_from(letters[1:]), hs.sampled_from(["PER", "LOC"])))
    pairs = hs.lists(hs.tuples(tag, tag), min_size=1, max_size=9)
    return hs.lists(pairs, min_size=1, max_size=4).map(lambda x: tuple([[pair[k] for pair in s] for s in x] for k in (0, 1)))


def quiet(function, *arguments, **words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **words)


@settings(max_examples=60, deadline=None)
@given(hs.sampled_from(["OIB", "OIBES"]).flatmap(sentences))
def test_lenient_figures_are_seqevals(pair):
    gold, predicted = pair
    found = entities(gold, predicted)
    assert found["f1"].value == pytest.approx(quiet(se.f1_score, gold, predicted))
    assert found["precision"].value == pytest.approx(quiet(se.precision_score, gold, predicted))
    assert found["recall"].value == pytest.approx(quiet(se.recall_score, gold, predicted))
    assert found["accuracy"].value == pytest.approx(se.accuracy_score(gold, predicted))
    report = quiet(se.classification_report, gold, predicted, output_dict=True)
    kinds = {name for name in report if not name.endswith("avg")}
    for kind in kinds:
        assert found[f"f1/{kind}"].value == pytest.approx(report[kind]["f1-score"])
    if kinds:
        assert found["f1/macro"].value == pytest.approx(report["macro avg"]["f1-score"])
        assert found["precision/weighted"].value == pytest.approx(report["weighted avg"]["precision"])


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=30, deadline=None)
@given(data=hs.data())
def test_strict_figures_are_seqevals(scheme, data):
    gold, predicted = data.draw(sentences(SCHEMES[scheme]))
    found = entities(gold, predicted, scheme)
    kind = getattr(seqeval.scheme, scheme)
    for how in ("micro", "macro", "weighted"):
        expected = quiet(strict_scores, gold, predicted, average=how, scheme=kind, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected):
            ours = found[name if how == "micro" else f"{name}/{how}"].value
            assert ours == pytest.approx(0 if np.isnan(value) else value), (name, how)


def test_published_examples():
    gold, predicted = [["B-PER", "I-PER", "O", "B-LOC"]], [["I-PER", "I-PER", "O", "B-PER"]]
    assert entities(gold, predicted)["f1"].value == 0.5
    assert entities(gold, predicted, "IOB2")["f1"].value == 0
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = entities(gold, predicted)
    assert (found["f1"].value, found["f1/PER"].value, found["f1/MISC"].value) == (0.5, 1, 0)
    assert found["accuracy"].value == 0.8


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        ("B-PER I-PER O B-LOC", None, [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-PER I-LOC", None, [("PER", 0, 1), ("LOC", 1, 2)]),
        ("I-PER B-PER I-PER", None, [("PER", 0, 1), ("PER", 1, 3)]),  # IOB1: B- only between neighbours
        ("I-PER B-PER I-PER", "IOB1", [("PER", 0, 1), ("PER", 1, 3)]),
        ("S-PER B-LOC I-LOC E-LOC", None, [("PER", 0, 1), ("LOC", 1, 4)]),
        ("S-PER B-LOC I-LOC E-LOC", "IOBES", [("PER", 0, 1), ("LOC", 1, 4)]),
        ("B-LOC I-LOC O", "IOBES", []),  # never ended
        ("S-PER B-LOC M-LOC M-LOC E-LOC B-LOC E-LOC", None, [("PER", 0, 1), ("LOC", 1, 5), ("LOC", 5, 7)]),  # BMES
        ("U-PER B-LOC L-LOC", "BILOU", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("I-PER", "IOB2", []),
        ("B-first-name I-first-name", None, [("first-name", 0, 2)]),
        ("", None, []),
    ],
)
def test_spans(tags, scheme, expected):
    assert spans(tags.split(), scheme) == [Span(*e) for e in expected]


@pytest.mark.parametrize(("tag", "scheme"), [("PER", None), ("X-PER", None), ("B-", None), ("E-PER", "IOB2"), ("", None)])
def test_strange_tags_are_told(tag, scheme):
    with pytest.raises(UserError, match="is neither O nor one of"):
        spans([tag], scheme)


def test_mistakes_of_shape_are_told():
    with pytest.raises(UserError, match="sentence 1: 2 gold tags, 1 predicted"):
        entities([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(UserError, match="did you mean 'IOBES'"):
        spans(["O"], "IOBS")


def test_mistakes_are_sorted():
    gold = [["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O", "B-LOC", "O", "O", "O"], ["B-ORG", "O"]]
    predicted = [["B-ORG", "I-ORG", "O", "B-LOC", "O", "O", "O", "O", "B-PER", "O"], ["B-LOC", "I-LOC"]]
    found = mistakes(gold, predicted)
    assert [(m.sentence, m.sort, m.gold and m.gold[1:], m.predicted and m.predicted[1:]) for m in found] == [
        (0, "type", (0, 2), (0, 2)),
        (0, "bounds", (3, 5), (3, 4)),
        (0, "missed", (6, 7), None),
        (0, "spurious", None, (8, 9)),
        (1, "both", (0, 1), (0, 2)),
    ]
    assert mistakes(gold, gold) == []


def test_errors_shrink_with_sentences():
    rng = np.random.default_rng(0)
    tags = np.array(["O", "B-PER", "I-PER"])

    def error(size):
        pair = [[list(tags[rng.integers(0, 3, 6)]) for _ in range(size)] for _ in range(2)]
        return entities(*pair)["f1"].error

    assert error(400) == pytest.approx(error(100) / 2, rel=0.3)
