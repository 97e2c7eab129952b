"""Deltas under noise and paraphrase against scipy."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from lm.errors import UserError
from lm.evaluation.attacks.robustness import change, invariance, jensen_shannon


def test_change_is_paired():
    rng = np.random.default_rng(0)
    clean = (rng.random(100) < 0.8).astype(float)
    noisy = clean * (rng.random(100) < 0.9)
    found = change(clean, noisy)
    assert found["delta"].value == pytest.approx(noisy.mean() - clean.mean())
    assert found["delta"].error == pytest.approx(stats.sem(noisy - clean))
    assert found["delta"].error < found["clean"].error  # the same examples


def test_jensen_shannon_is_scipys():
    p, q = np.random.default_rng(1).dirichlet([0.5] * 4, (2, 30))
    np.testing.assert_allclose(jensen_shannon(p, q), jensenshannon(p, q, axis=1) ** 2, atol=1e-12)
    np.testing.assert_allclose(jensen_shannon([[1, 0]], [[0, 1]]), np.log(2))
    np.testing.assert_allclose(jensen_shannon([[1, 0], [0.5, 0.5]], [[1, 0], [0.5, 0.5]]), 0)


def test_invariance():
    first = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    second = np.array([[0.6, 0.4], [0.6, 0.4], [0.7, 0.3], [0.3, 0.7]])
    found = invariance(first, second, [0, 1, 1, 1])
    assert found["same_prediction"].value == 0.75
    assert found["js_divergence"].value == pytest.approx(np.mean(jensenshannon(first, second, axis=1) ** 2))
    assert (found["clean"].value, found["perturbed"].value, found["delta"].value) == (0.75, 0.5, -0.25)
    assert set(invariance(first, second)) == {"same_prediction", "js_divergence"}
    with pytest.raises(UserError, match="pairs, classes"):
        invariance(first, second[:, :1])
