"""Accuracy under other class priors, against scikit-learn and fresh samples."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score

from lm.errors import UserError
from lm.evaluation.metrics.label_shift import reweighted

CENTRES = np.array([-1.5, 0.0, 1.5])
TRAINED = np.array([0.5, 0.3, 0.2])
TARGET = np.array([0.1, 0.3, 0.6])


def made(prior, size, seed):
    """Points of three bells, their classes, and the exact probabilities under the shares trained on."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size, p=prior)
    x = rng.normal(CENTRES[truth], 1)
    joint = TRAINED * norm.pdf(x[:, None], CENTRES)
    return truth, joint / joint.sum(1, keepdims=True)


def test_reweighted_is_a_weighted_accuracy():
    truth, p = made(TRAINED, 3000, 0)
    predicted = p.argmax(1)
    weights = (TARGET / (np.bincount(truth) / len(truth)))[truth]
    found = reweighted(truth, predicted, TARGET)
    assert found["reweighted"].value == pytest.approx(accuracy_score(truth, predicted, sample_weight=weights))
    assert found["clean"].value == pytest.approx(accuracy_score(truth, predicted))
    assert found["delta"].value == pytest.approx(found["reweighted"].value - found["clean"].value)
    shifted, q = made(TARGET, 40_000, 1)
    assert abs(found["reweighted"].value - (q.argmax(1) == shifted).mean()) < 3 * found["reweighted"].error


def test_reweighted_error_is_that_of_new_sets():
    values = []
    for seed in range(200):
        truth, p = made(TRAINED, 300, seed)
        values.append(reweighted(truth, p.argmax(1), TARGET)["reweighted"])
    assert np.mean([v.error for v in values]) == pytest.approx(np.std([v.value for v in values]), rel=0.15)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reweighted([0, 0], [0, 1], [0.5, 0.5]), "class 1 has a share but no examples"),
        (lambda: reweighted([0, 1], [0, 1], [0.5, 0.6]), "sum to 1, not 1.1"),
        (lambda: reweighted([0, 2], [0, 1], [0.5, 0.5]), "0..1"),
    ],
)
def test_mistakes_are_told(call, words):
    with pytest.raises(UserError, match=words):
        call()
