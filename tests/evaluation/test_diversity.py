"""Distinct, entropy, repetition by hand and by their definitions; self-BLEU against nltk."""

import math
from collections import Counter

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from scipy import stats

from lm.errors import UserError
from lm.evaluation.metrics.diversity import diversity, ngrams, repeated, repetition, returning, self_bleu


def random_texts(count: int, seed: int = 0, vocab: int = 6, longest: int = 14):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, rng.integers(1, longest)).tolist() for _ in range(count)]


def test_diversity_by_hand():
    found = diversity(["A b a b", "a c"])
    assert found["distinct_1"].value == pytest.approx(3 / 6)
    assert found["distinct_2"].value == pytest.approx(3 / 4)  # ab ba ab ac
    assert found["distinct_4"].value == 1
    assert found["entropy_1"].value == pytest.approx(stats.entropy([3, 2, 1]))
    assert found["entropy_2"].value == pytest.approx(stats.entropy([2, 1, 1]))
    assert np.isnan(diversity(["a"])["distinct_2"].value)


def test_diversity_counts():
    texts = random_texts(60)
    found = diversity(texts)
    for n in (1, 2, 3, 4):
        counts = Counter(g for text in texts for g in ngrams(text, n))
        assert found[f"distinct_{n}"].value == pytest.approx(len(counts) / counts.total())
        assert found[f"entropy_{n}"].value == pytest.approx(stats.entropy([*counts.values()]))


def test_error_of_entropy_is_that_of_new_texts():
    values = [diversity(random_texts(200, seed), (1,)) for seed in range(40)]
    spread = np.std([v["entropy_1"].value for v in values])
    assert np.mean([v["entropy_1"].error for v in values]) == pytest.approx(spread, rel=0.3)


def test_repetition_by_hand():
    assert repeated(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(1 - 2 / 5)
    assert repeated(["a", "b", "c"], 2) == 0
    assert math.isnan(repeated(["a"], 2))
    assert returning(["a", "b", "a", "c", "b"], 128) == pytest.approx(2 / 5)
    assert returning(["a", "b", "a", "c", "b"], 2) == pytest.approx(1 / 5)  # b is three back
    assert math.isnan(returning([], 4))


@pytest.mark.parametrize("window", [1, 3, 128])
def test_returning_is_a_search(window):
    for text in random_texts(20, 1):
        found = [token in text[max(0, i - window) : i] for i, token in enumerate(text)]
        assert returning(text, window) == pytest.approx(np.mean(found))


def test_repetition_figures():
    texts = ["x y " * 20, "one two three four five six", "short"]
    found = repetition(texts)
    reps = {n: [repeated(t.split(), n) for t in texts[:2]] for n in (2, 3, 4)}
    for n in (2, 3, 4):
        assert found[f"rep_{n}"].value == pytest.approx(np.mean(reps[n]))
    assert found["seq_rep_4"] == found["rep_4"]
    assert found["diversity"].value == pytest.approx(np.mean([math.prod(1 - reps[n][i] for n in reps) for i in (0, 1)]))
    assert found["rep_w"].value == pytest.approx((38 / 40 + 0 + 0) / 3)
    assert np.isnan(repetition(["a"])["rep_2"].value)


@pytest.mark.parametrize("order", [4, 5])
@pytest.mark.parametrize(("count", "vocab"), [(2, 3), (12, 4), (20, 12)])
@pytest.mark.filterwarnings("ignore")
def test_self_bleu_is_nltks(order, count, vocab):
    texts = random_texts(count, count, vocab)
    method, weights = SmoothingFunction().method1, [1 / order] * order
    others = [texts[:i] + texts[i + 1 :] for i in range(count)]
    each = [sentence_bleu(rest, text, weights, method) for text, rest in zip(texts, others)]
    found = self_bleu(texts, order)[f"self_bleu_{order}"]
    assert found.value == pytest.approx(np.mean(each))
    assert found.error == pytest.approx(np.std(each, ddof=1) / np.sqrt(count))


def test_self_bleu_of_copies_and_strangers():
    assert self_bleu(["a b c d e"] * 3)["self_bleu_4"].value == pytest.approx(1)
    assert self_bleu(["a b c d", "e f g h"])["self_bleu_4"].value == 0
    with pytest.raises(UserError, match="at least two"):
        self_bleu(["a"])
