"""MAUVE where its value is known: equal and disjoint sets, histograms by the formulas, sets of known clusters."""

import math

import numpy as np
import pytest
from scipy.special import rel_entr
from sklearn.metrics import auc

from lm.errors import UserError
from lm.evaluation.metrics.mauve import area, cluster, divergence, mauve, smoothed


def written_out(p, q, scale=5):
    """The definition point by point, with scikit-learn's area as the reference takes it."""
    points = [(1.0, 0.0), (0.0, 1.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, 25):
        r = weight * np.array(p) + (1 - weight) * np.array(q)
        points.append((math.exp(-scale * rel_entr(q, r).sum()), math.exp(-scale * rel_entr(p, r).sum())))
    x, y = np.array(sorted(points)).T
    v, u = np.array(sorted((b, a) for a, b in points)).T
    return (auc(x, y) + auc(v, u)) / 2


@pytest.mark.parametrize(
    ("p", "q"), [([0.5, 0.5], [0.9, 0.1]), ([0.2, 0.3, 0.5], [0.2, 0.8, 0.0]), ([0.1, 0.9, 0], [0, 0.4, 0.6])]
)
@pytest.mark.parametrize("scale", [1, 5])
def test_area_is_the_definition(p, q, scale):
    assert area(np.array(p), np.array(q), scale) == pytest.approx(written_out(p, q, scale))
    assert area(np.array(p), np.array(q)) == pytest.approx(area(np.array(q), np.array(p)), rel=1e-6)


def test_area_of_equal_and_disjoint_histograms():
    p = np.array([0.2, 0.8, 0, 0])
    assert area(p, p) == pytest.approx(1)
    # Disjoint: the curve is x^(1/c) + y^(1/c) = 1, whose area is 1 / binomial(2c, c); 25 mixtures come near it.
    assert area(p, p[::-1]) == pytest.approx(1 / math.comb(10, 5), rel=0.05)


def test_divergence_is_scipys():
    p, q = np.random.default_rng(0).dirichlet([1] * 5, 2)
    assert divergence(p, q) == pytest.approx(rel_entr(p, q).sum())
    assert divergence(np.array([0, 1.0]), np.array([0.5, 0.5])) == pytest.approx(math.log(2))


def test_smoothing():
    np.testing.assert_allclose(smoothed(np.array([3, 0, 1])), [3.5 / 5.5, 0.5 / 5.5, 1.5 / 5.5])


def islands(counts, seed: int = 0):
    """Texts in tight groups that no clustering can miss: counts per group."""
    centres = np.repeat(np.eye(len(counts)), counts, axis=0)
    return centres + 0.01 * np.random.default_rng(seed).normal(size=centres.shape)


def test_known_clusters_give_the_histograms_value():
    first, second = (20, 30, 50), (40, 40, 20)
    found = mauve(islands(first), islands(second, 1), clusters=3)
    p, q = np.array(first), np.array(second)
    assert found["mauve"].value == pytest.approx(area(p / 100, q / 100))
    assert found["mauve_star"].value == pytest.approx(area(smoothed(p), smoothed(q)))
    assert 0 < found["mauve"].error < 0.1
    lengths = np.random.default_rng(2).uniform(1, 9, (100, 1))  # features count by direction
    assert mauve(lengths * islands(first), islands(second, 1), clusters=3)["mauve"] == found["mauve"]


def test_same_other_and_opposite_sets():
    rng = np.random.default_rng(3)
    base = rng.normal(size=(300, 8))
    assert mauve(base, base, seeds=(0,))["mauve"].value == pytest.approx(1)
    again = mauve(base, rng.normal(size=(300, 8)), clusters=10, seeds=(0, 1))["mauve"].value
    shifted = mauve(base, rng.normal(size=(300, 8)) + 0.7, clusters=10, seeds=(0, 1))["mauve"].value
    apart = mauve(base + 9, rng.normal(size=(300, 8)) - 9, clusters=10, seeds=(0, 1))["mauve"].value
    assert 1 > again > 0.9 > shifted > 0.05 > apart
    assert apart == pytest.approx(1 / 252, rel=0.05)


def test_seeds():
    rng = np.random.default_rng(4)
    p, q = rng.normal(size=(120, 6)), rng.normal(size=(120, 6)) + 0.3
    single = [mauve(p, q, seeds=(s,))["mauve"].value for s in (1, 2, 3)]
    found = mauve(p, q, seeds=(1, 2, 3))["mauve"]
    assert found.value == pytest.approx(np.mean(single))
    assert found == mauve(p, q, seeds=(1, 2, 3))["mauve"]
    assert len(set(single)) > 1


def test_clusters():
    labels = cluster(islands((5, 9)), 2, 0)
    assert sorted(np.bincount(labels).tolist()) == [5, 9]
    assert mauve(np.ones((20, 3)), np.ones((20, 3)))["mauve"].value == pytest.approx(1)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="of one size"):
        mauve(np.zeros((30, 2)), np.zeros((30, 3)))
    with pytest.raises(UserError, match="50 clusters"):
        mauve(np.zeros((30, 2)), np.zeros((30, 2)), clusters=50)
    with pytest.raises(UserError, match="finite"):
        mauve(np.full((30, 2), np.nan), np.zeros((30, 2)))
