"""Question answering: published examples, and the threshold against trying every bound."""

import json
from pathlib import Path

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.metrics.qa import (
    CMRC,
    answers,
    best,
    best_threshold,
    cmrc_exact,
    cmrc_f1,
    longest_run,
    normalise,
    segments,
    squad_f1,
    with_threshold,
)


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("the Denver Broncos.", "Denver Broncos", 1, 1.0),
        ("Broncos of Denver", "The Denver Broncos", 0, 0.8),
        ("the", "a", 1, 1.0),  # nothing is left of either
        ("the", "Denver", 0, 0.0),
        ("", "", 1, 1.0),
        ("x x y", "x y y", 0, 2 / 3),  # a bag: each word as often as both have it
        ("Theatre", "theatre", 1, 1.0),  # an article only as a whole word
    ],
)
def test_squad(prediction, gold, exact, f1):
    assert best(prediction, [gold]) == pytest.approx((exact, f1))


def test_normalise_takes_steps_in_order():
    assert normalise(" The  U.S.A.'s an-them\n") == "usas anthem"
    assert normalise("a.b the-end") == "ab theend"  # punctuation goes before articles are looked for


def test_the_best_reference_counts():
    assert best("Denver", ["Boston", "in Denver", "Denver!"]) == (1, 1)
    found = best("red big car", ["red", "big car now"])
    assert found == (0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("京大学校", "北京大学的", 0, 2 * 0.75 * 0.6 / 1.35),  # 3 of 4, 3 of 5, in a row
        ("大北京学", "北京大学", 0, 0.5),  # all four characters, but only two in a row
        ("《北京，大学》。", "北京大学", 1, 1.0),
        ("BERT模型", "bert 模型", 0, 1.0),
        ("1998年", "1998年5月", 0, 2 * 2 / 6),  # a number is one token
        ("，。", "北京", 0, 0.0),
    ],
)
def test_cmrc(prediction, gold, exact, f1):
    assert cmrc_exact(prediction, gold) == exact
    assert cmrc_f1(prediction, gold) == pytest.approx(f1)


def test_segments():
    assert segments("我爱 New York，真的！") == ["我", "爱", "new", "york", "真", "的"]


def test_longest_run_against_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (rng.choice(list("xyz"), rng.integers(1, 9)).tolist() for _ in range(2))
        runs = {tuple(a[i:j]) for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
        other = {tuple(b[i:j]) for i in range(len(b)) for j in range(i + 1, len(b) + 1)}
        assert longest_run(a, b) == max(map(len, runs & other), default=0)


def test_figures():
    predictions, golds = ["Paris", "in Rome", "", "x"], [["Paris"], ["Rome"], [], []]
    found = answers(predictions, golds)
    assert found["exact"].value == 0.5
    assert found["f1"].value == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)
    assert found["exact/has_answer"].value == 0.5
    assert found["f1/has_answer"].value == pytest.approx(5 / 6)
    assert found["f1/no_answer"].value == 0.5
    assert found["f1"].error == pytest.approx(np.std([1, 2 / 3, 1, 0], ddof=1) / 2)
    assert set(answers(["a"], [["a"]])) == {"exact", "f1"}
    assert answers(["京大学校"], [["北京大学的"]], CMRC)["f1"].value == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="list of texts"):
        answers(["a"], ["a"])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("metric", ["exact", "f1"])
def test_threshold_is_the_best_of_all(metric, ties):
    rng = np.random.default_rng(1)
    for _ in range(30):
        size = 12
        words = ["red", "red car", "blue"]
        golds = [[words[rng.integers(3)]] if rng.random() < 0.5 else [] for _ in range(size)]
        predictions = [words[rng.integers(3)] for _ in range(size)]
        odds = rng.integers(-2, 3, size).astype(float) if ties else rng.normal(size=size)
        found = best_threshold(predictions, golds, odds, metric)

        def value(bound):
            silenced = with_threshold(predictions, odds, bound)  # noqa: B023
            return answers(silenced, golds)[metric].value  # noqa: B023

        assert found.value == pytest.approx(max(value(b) for b in (-np.inf, *odds)))
        assert value(found.bound) == pytest.approx(found.value)


def test_threshold_answers_nothing_where_that_is_best():
    assert best_threshold(["x"], [[]], [0.0]).bound == -np.inf
    assert best_threshold(["x"], [["x"]], [3.0]).bound == 3
    with pytest.raises(UserError, match="finite"):
        best_threshold(["x"], [["x"]], [np.nan])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_answers_match_themselves(language):
    path = Path(__file__).parents[3] / f"shared/data/xquad/xquad.{language}.json"
    if not path.exists():
        pytest.skip("no XQuAD beside the repository")
    paragraphs = [p for article in json.loads(path.read_text("utf-8"))["data"] for p in article["paragraphs"]]
    golds = [[a["text"] for a in question["answers"]] for p in paragraphs for question in p["qas"]]
    rule = (squad_f1, squad_f1) if language == "en" else CMRC
    whole = answers([g[0] for g in golds], golds, rule)
    assert (len(golds), whole["f1"].value) == (1190, 1)
    others = answers([g[0] for g in golds[1:] + golds[:1]], golds, rule)
    assert others["f1"].value < 0.1
