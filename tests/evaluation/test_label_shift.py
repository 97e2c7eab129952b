"""Shares of classes are found again where the data were made with them."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score

from lm.errors import UserError
from lm.evaluation.metrics.label_shift import adjusted, estimate_prior, estimate_shift, reweighted

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


def test_em_finds_the_shares():
    _, p = made(TARGET, 20_000, 2)
    np.testing.assert_allclose(estimate_prior(p, TRAINED), TARGET, atol=0.02)
    _, p = made(TRAINED, 20_000, 3)
    np.testing.assert_allclose(estimate_prior(p, TRAINED), TRAINED, atol=0.02)


def test_adjusted_is_the_posterior_of_the_other_shares():
    truth, p = made(TARGET, 20_000, 4)
    q = adjusted(p, TRAINED, TARGET)
    np.testing.assert_allclose(q.sum(1), 1)
    assert (q.argmax(1) == truth).mean() > (p.argmax(1) == truth).mean() + 0.02
    assert np.log(q[np.arange(len(q)), truth]).mean() > np.log(p[np.arange(len(p)), truth]).mean()
    np.testing.assert_allclose(q.mean(0), TARGET, atol=0.02)  # calibrated there
    np.testing.assert_allclose(adjusted(p, TRAINED, TRAINED), p)


def test_bbse_finds_the_shares_with_honest_errors():
    truth, p = made(TRAINED, 4000, 5)
    _, q = made(TARGET, 4000, 6)
    found = estimate_shift(truth, p.argmax(1), q.argmax(1), 3)
    values = np.array([found[f"share/{k}"].value for k in range(3)])
    errors = np.array([found[f"share/{k}"].error for k in range(3)])
    assert values.sum() == pytest.approx(1)
    assert (abs(values - TARGET) < 3 * errors).all()
    assert (errors < 0.06).all()
    repeats = []
    for seed in range(60):
        (t, a), (_, b) = made(TRAINED, 4000, 100 + seed), made(TARGET, 4000, 200 + seed)
        repeats.append(estimate_shift(t, a.argmax(1), b.argmax(1), 3, replicates=2)["share/1"].value)
    assert errors[1] == pytest.approx(np.std(repeats), rel=0.35)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reweighted([0, 0], [0, 1], [0.5, 0.5]), "class 1 has a share but no examples"),
        (lambda: reweighted([0, 1], [0, 1], [0.5, 0.6]), "sum to 1, not 1.1"),
        (lambda: reweighted([0, 2], [0, 1], [0.5, 0.5]), "0..1"),
        (lambda: estimate_prior([[0.5, 0.5]], [1.0, 0.0]), "trained on"),
        (lambda: estimate_shift([0, 1], [0, 1], [5], 2), "above the last class"),
    ],
)
def test_mistakes_are_told(call, words):
    with pytest.raises(UserError, match=words):
        call()
