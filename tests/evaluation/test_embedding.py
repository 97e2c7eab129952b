"""Embedding figures against torch, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from lm.errors import UserError
from lm.evaluation.metrics.embedding import (
    alignment,
    cosine,
    first_rank,
    relevance,
    retrieval,
    similarity,
    uniformity,
    weat,
)

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(2, 60, 8)) + 0.5
GOLD = RNG.integers(0, 6, 60).astype(float)


def test_cosine():
    np.testing.assert_allclose(cosine(FIRST, SECOND), np.diag(cosine_similarity(FIRST, SECOND)))
    assert cosine([[0.0, 0.0]], [[1.0, 0.0]]) == 0


def test_similarity():
    near = SECOND + GOLD[:, None] * FIRST / 3
    cosines = np.diag(cosine_similarity(FIRST, near))
    subsets = ["sts12", "sts13", "sts13"] * 20
    found = similarity(FIRST, near, GOLD, subsets)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(cosines, GOLD)[0])
    assert found["pearson"].value == pytest.approx(stats.pearsonr(cosines, GOLD)[0])
    parts = [stats.spearmanr(cosines[chosen], GOLD[chosen])[0] for chosen in (np.arange(60) % 3 == 0, np.arange(60) % 3 > 0)]
    assert [found["spearman/sts12"].value, found["spearman/sts13"].value] == pytest.approx(parts)
    assert found["spearman_mean"].value == pytest.approx(np.mean(parts))
    theory = np.sqrt((1 + found["spearman"].value ** 2 / 2) / 57) * (1 - found["spearman"].value ** 2)  # Bonett & Wright 2000
    assert found["spearman"].error == pytest.approx(theory, rel=0.3)
    assert set(similarity(FIRST, near, GOLD)) == {"spearman", "pearson"}


def test_alignment_and_uniformity():
    x, y = (torch.nn.functional.normalize(torch.tensor(v), dim=1) for v in (FIRST, SECOND))
    each = (x - y).norm(dim=1).pow(2).numpy()
    found = alignment(FIRST, SECOND)["alignment"]
    assert found.value == pytest.approx(each.mean())
    assert found.error == pytest.approx(stats.sem(each))
    even = uniformity(FIRST)["uniformity"]
    assert even.value == pytest.approx(float(torch.pdist(x).pow(2).mul(-2).exp().mean().log()))
    assert uniformity(FIRST, block=7)["uniformity"].value == pytest.approx(even.value)
    without = [float(torch.pdist(torch.cat([x[:i], x[i + 1 :]])).pow(2).mul(-2).exp().mean().log()) for i in range(60)]
    assert even.error == pytest.approx(np.sqrt(59 * np.var(without)))
    assert uniformity(np.ones((5, 3)))["uniformity"].value == pytest.approx(0)


def test_relevance():
    prompts = np.eye(4)
    found = relevance(prompts, prompts)
    assert (found["relevance"].value, found["lift"].value) == (1, 1)
    found = relevance(FIRST, SECOND)
    matrix = cosine_similarity(FIRST, SECOND)
    assert found["relevance"].value == pytest.approx(np.trace(matrix) / 60)
    others = (matrix.sum() - np.trace(matrix)) / (60 * 59)
    assert found["lift"].value == pytest.approx(np.trace(matrix) / 60 - others)


def test_retrieval():
    found = retrieval(FIRST + SECOND, SECOND, [[i] for i in range(60)], (1, 3))
    scores = cosine_similarity(FIRST + SECOND, SECOND)
    for k in (1, 3):
        assert found[f"accuracy@{k}"].value == pytest.approx(top_k_accuracy_score(np.arange(60), scores, k=k))
    ranks = [1 + np.argsort(-row).tolist().index(i) for i, row in enumerate(scores)]
    assert found["mrr"].value == pytest.approx(np.mean(1 / np.array(ranks)))


def test_weat_is_its_formula():
    x, y, a, b = np.random.default_rng(0).normal(size=(4, 6, 5))
    x = x + 0.8 * a.mean(0)
    s_x, s_y = (cosine_similarity(w, a).mean(1) - cosine_similarity(w, b).mean(1) for w in (x, y))
    found = weat(x, y, a, b)
    assert found["weat"].value == pytest.approx((s_x.mean() - s_y.mean()) / np.std([*s_x, *s_y], ddof=1))
    expected = stats.permutation_test(
        (s_x, s_y), lambda u, v, axis: u.mean(axis) - v.mean(axis), alternative="greater", vectorized=True
    )
    assert found["weat_p"].value == pytest.approx(expected.pvalue, abs=0.01)
    assert weat(y, x, a, b)["weat"].value == pytest.approx(-found["weat"].value)
    rng = np.random.default_rng(1)
    p_values = [weat(*rng.normal(size=(4, 8, 10)), permutations=300)["weat_p"].value for _ in range(20)]
    assert 0.3 < np.mean(p_values) < 0.7


def test_first_rank():
    scores = np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    assert first_rank(scores, [2], 0) == 4  # a tie counts against it
    assert first_rank(scores, [2, 3], 0) == 3  # relevant ones do not stand in each other's way
    assert first_rank(scores, [4, 0], 0) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cosine(np.ones((2, 3)), np.ones((2, 4))), "sizes 3 and 4"),
        (lambda: cosine(np.ones((2, 3)), np.ones((1, 3))), "2 first, 1 second"),
        (lambda: cosine(np.full((2, 3), np.nan), np.ones((2, 3))), "finite"),
        (lambda: uniformity(np.zeros((5, 3))), "zeros"),
        (lambda: retrieval(np.ones((1, 3)), np.ones((2, 3)), [[2]]), "query 0"),
        (lambda: retrieval(np.ones((1, 3)), np.ones((2, 3)), [[]]), "query 0"),
        (lambda: weat(np.ones((2, 3)), np.ones((2, 3)), np.ones((0, 3)), np.ones((2, 3))), "four sets"),
    ],
)
def test_mistakes_are_told(call, words):
    with pytest.raises(UserError, match=words):
        call()
