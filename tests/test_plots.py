"""Loss curves: drawn whatever the log holds."""

import json
import math

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.report.loss_curve import best, count, loss_curve, losses, smooth

CURVE = [
    {"step": step, "train/loss": 4 - step / 50, "train/tokens": 64.0 * step}
    | ({"eval/validation/loss": 3.0} if step % 20 == 0 else {})
    for step in range(1, 101)
]
LOGS = {
    "curve": CURVE,
    "empty": [],
    "one point": CURVE[:1],
    "step zero": [{"step": 0, "eval/validation/loss": 4.0, "train/tokens": 0.0}],
    "without losses": [{"step": 1, "train/accuracy": 0.5}],
    "with gaps": [line | ({"train/loss": None} if 30 < line["step"] < 60 else {}) for line in CURVE],
    "nothing finite": [{"step": 1, "train/loss": None}, {"step": 2, "train/loss": None, "eval/a/loss": None}],
    "a burst": [line | ({"train/loss": 1e30} if line["step"] == 50 else {}) for line in CURVE],
    "constant": [{"step": s, "train/loss": 0.0} for s in range(1, 50)],
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.filterwarnings("error")
def test_draws(tmp_path, name):
    log, png = tmp_path / "metrics.jsonl", tmp_path / "pictures" / "loss.png"
    log.write_text("".join(json.dumps(line) + "\n" for line in LOGS[name]) + '{"step": 101, "tr')
    loss_curve(log, png)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert png.read_bytes()[16:24] == (1000).to_bytes(4, "big") + (600).to_bytes(4, "big")


def test_missing_log(tmp_path):
    with pytest.raises(UserError, match=r"no .*metrics\.jsonl"):
        loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


def test_losses_by_name():
    first = {"step": 1, "train/loss": 2.0, "eval/a/loss": None}
    train, evals = losses([first, {"step": 2, "eval/validation/loss": 1.5, "eval/a/f1": 0.1}])
    assert train.tolist() == [[1.0, 2.0]]
    assert list(evals) == ["validation", "a"]  # validation leads
    assert evals["validation"].tolist() == [[2.0, 1.5]]
    assert math.isnan(evals["a"][0, 1])


def test_smooth_keeps_lines_and_gaps():
    line = np.arange(100.0)
    assert smooth(line, 5)[20:95] == pytest.approx(line[20:95])  # no lag
    assert smooth(line, 0) == pytest.approx(line)
    line[40] = math.nan
    assert np.flatnonzero(np.isnan(smooth(line, 5))).tolist() == [40]
    noisy = np.random.default_rng(0).normal(size=2000)
    assert smooth(noisy, 50)[200:].std() < 0.2


def test_best_skips_nan():
    assert best(np.array([[10, math.nan], [20, 1.5], [30, 2.0]])) == (20, 1.5)
    assert best(np.zeros((0, 2))) is None


@pytest.mark.parametrize(("value", "text"), [(950, "950"), (1.5e6, "1.5M"), (3e11, "300B"), (0, "0")])
def test_count(value, text):
    assert count(value) == text
