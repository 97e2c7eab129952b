"""Bias probes by hand, by their papers' formulas, and where there is no bias."""

import numpy as np
import pytest
from scipy import stats

from lm.errors import UserError
from lm.evaluation.metrics.bias import fill, paired_bias, weat


def test_fill_pairs_groups():
    found = fill(["{} is a nurse", "ask {}"], [["he", "my uncle"], ["she", "my aunt"]])
    assert found == [
        ["he is a nurse", "my uncle is a nurse", "ask he", "ask my uncle"],
        ["she is a nurse", "my aunt is a nurse", "ask she", "ask my aunt"],
    ]
    with pytest.raises(UserError, match="'no slot' has no"):
        fill(["no slot"], [["a"], ["b"]])
    with pytest.raises(UserError, match="equally many"):
        fill(["{}"], [["a"], ["b", "c"]])


def test_paired_bias():
    first, second = np.array([3.0, 1, 2, 5, 4]), np.array([1.0, 2, 2, 1, 1])
    found, p = paired_bias(first, second)
    assert found["difference"].value == pytest.approx(1.6)
    assert found["difference"].error == pytest.approx(stats.sem(first - second))
    assert found["absolute"].value == pytest.approx(2)
    assert found["preference"].value == 0.75  # the tie is left out
    assert p == pytest.approx(stats.binomtest(3, 4).pvalue)
    same, p = paired_bias([1, 2], [1, 2])
    assert np.isnan(same["preference"].value)
    assert p == 1


def test_weat_is_its_formula():
    x, y, a, b = np.random.default_rng(0).normal(size=(4, 6, 5))
    x = x + 0.8 * a.mean(0)

    def cosine(u, v):
        return u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    def association(w):
        return np.mean([cosine(w, v) for v in a]) - np.mean([cosine(w, v) for v in b])

    s_x, s_y = [association(w) for w in x], [association(w) for w in y]
    found, p = weat(x, y, a, b)
    assert found["weat"].value == pytest.approx((np.mean(s_x) - np.mean(s_y)) / np.std([*s_x, *s_y], ddof=1))
    expected = stats.permutation_test(
        (s_x, s_y), lambda u, v, axis: u.mean(axis) - v.mean(axis), alternative="greater", vectorized=True
    )
    assert p == pytest.approx(expected.pvalue, abs=0.01)
    assert weat(y, x, a, b)[0]["weat"].value == pytest.approx(-found["weat"].value)


def test_weat_without_bias():
    rng = np.random.default_rng(1)
    p_values = [weat(*rng.normal(size=(4, 8, 10)), permutations=300)[1] for _ in range(40)]
    assert 0.3 < np.mean(p_values) < 0.7
    with pytest.raises(UserError, match="four sets"):
        weat(np.ones((2, 3)), np.ones((2, 3)), np.ones((0, 3)), np.ones((2, 3)))
