"""Calibration against scikit-learn, torch and temperatures that are known because the data were made with them."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from lm.errors import UserError
from lm.evaluation.metrics.calibration import binned, calibration, fit_temperature


def made(size: int = 2000, classes: int = 3, temperature: float = 1.0, seed: int = 0):
    """Logits, and true classes drawn from their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(size, classes))
    draws = softmax(logits / temperature, -1).cumsum(1) > rng.random((size, 1))
    return logits, draws.argmax(1)


@pytest.mark.parametrize(("how", "strategy"), [("width", "uniform"), ("mass", "quantile")])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_bins_are_scikit_learns(how, strategy, bins):
    logits, truth = made(temperature=2)
    p = softmax(logits, -1)
    count, *sums = np.split(binned(p.max(1), p.argmax(1) == truth, bins, how).sum(0), 3)
    accuracy, confidence = calibration_curve(p.argmax(1) == truth, p.max(1), n_bins=bins, strategy=strategy)
    filled = count > 0
    for part, expected in zip(sums, (confidence, accuracy)):
        np.testing.assert_allclose(part[filled] / count[filled], expected)
    share = count[filled] / len(truth)
    error = calibration(p, truth, bins)["ece" if how == "width" else "ece_mass"]
    assert error.value == pytest.approx((share * abs(accuracy - confidence)).sum())
    if how == "width":
        assert calibration(p, truth, bins)["mce"].value == pytest.approx(abs(accuracy - confidence).max())


def test_error_by_hand():
    """Two bins: confidences .6 .8 (one right) and .3 .4 are there; gaps |.7 - .5| and |.35 - 0|."""
    p = [[0.6, 0.2, 0.1, 0.1], [0.8, 0.1, 0.1, 0.0], [0.3, 0.3, 0.2, 0.2], [0.4, 0.2, 0.2, 0.2]]
    found = calibration(p, [0, 1, 3, 3], bins=2)
    assert found["ece"].value == pytest.approx(0.5 * 0.2 + 0.5 * 0.35)
    assert found["mce"].value == pytest.approx(0.35)
    assert found["accuracy"].value == 0.25
    assert found["confidence"].value == pytest.approx(0.525)


def test_scores_equal_scikit_learn_and_torch():
    logits, truth = made()
    p = softmax(logits, -1)
    found = calibration(p, truth)
    squares = 3 * float(torch.nn.functional.mse_loss(torch.tensor(p), torch.eye(3, dtype=torch.float64)[truth]))
    assert found["nll"].value == pytest.approx(log_loss(truth, p))
    assert found["brier"].value == pytest.approx(squares)
    each = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(truth), reduction="none").numpy()
    assert found["nll"].value == pytest.approx(each.mean())
    assert found["nll"].error == pytest.approx(each.std(ddof=1) / np.sqrt(len(each)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_found(temperature):
    logits, truth = made(20_000, temperature=temperature)
    fitted = fit_temperature(logits, truth)
    assert fitted == pytest.approx(temperature, rel=0.05)
    before, after = (calibration(softmax(logits / t, -1), truth) for t in (1, fitted))
    assert after["nll"].value <= before["nll"].value
    assert after["ece"].value < 0.015
    if temperature != 1:
        assert before["ece"].value > 5 * after["ece"].value


def test_temperature_equals_torchs_minimum():
    logits, truth = made(500, temperature=3)
    z, y, log_t = torch.tensor(logits), torch.tensor(truth), torch.zeros((), dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([log_t], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss():
        descent.zero_grad()
        value = torch.nn.functional.cross_entropy(z / log_t.exp(), y)
        value.backward()
        return value

    descent.step(loss)
    assert fit_temperature(logits, truth) == pytest.approx(float(log_t.exp().detach()), rel=1e-5)


def test_temperatures_without_a_minimum():
    logits, _ = made(50)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(1e-3)  # always right: as sharp as it goes
    assert fit_temperature(logits, logits.argmin(1)) == pytest.approx(1e3)


def test_a_truth_given_no_chance():
    found = calibration([[1.0, 0.0], [0.5, 0.5]], [1, 0])
    assert found["nll"].value == np.inf
    assert found["brier"].value == pytest.approx((2 + 0.5) / 2)


@pytest.mark.parametrize(
    ("p", "truth", "words"),
    [
        ([[2.0, 1.0]], [0], "row 0 is no distribution"),
        ([[0.5, 0.5]], [2], "0..1"),
        ([[0.5, 0.5]], [0.5], "must be ids"),
        ([[0.5, 0.5]], [0, 1], "1 distributions, 2 truths"),
        ([0.5, 0.5], [0, 1], "examples, classes"),
    ],
)
def test_mistakes_are_told(p, truth, words):
    with pytest.raises(UserError, match=words):
        calibration(p, truth)
