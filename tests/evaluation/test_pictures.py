"""Pictures are drawn for any number of classes, and show what they claim."""

import numpy as np
import pytest
from matplotlib import image

from lm.errors import UserError
from lm.evaluation.metrics.calibration import binned
from lm.evaluation.report.pictures import draw_confusion, draw_reliability, shortened


def pixels(png):
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return image.imread(png)[..., :3]


@pytest.mark.parametrize("size", [1, 2, 10, 50, 130])
@pytest.mark.filterwarnings("error")
def test_confusion(tmp_path, size):
    rng = np.random.default_rng(size)
    counts = rng.integers(0, 5, (size, size)) + 40 * np.eye(size, dtype=int)
    png = tmp_path / "new" / "confusion.png"
    draw_confusion(counts, [f"class {k}" for k in range(size)], png)
    found = pixels(png)
    assert max(found.shape) < 1800
    frame = np.concatenate([found[:10].ravel(), found[-10:].ravel(), found[:, :10].ravel(), found[:, -10:].ravel()])
    assert (frame == 1).all()  # nothing is cut off at the edges


def test_confusion_of_nothing_right(tmp_path):
    draw_confusion(np.array([[0, 3], [0, 0]]), ["a" * 60, "b"], tmp_path / "c.png")
    with pytest.raises(UserError, match="3 classes"):
        draw_confusion(np.zeros((2, 2), int), "abc", tmp_path / "c.png")


def test_shortened():
    assert shortened("a" * 60) == "a" * 23 + "…"
    assert shortened(7) == "7"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1, 500])
def test_reliability(tmp_path, size):
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.5] * 4, size)
    png = tmp_path / "reliability.png"
    draw_reliability(binned(p.max(1), p.argmax(1) == rng.integers(0, 4, size), 15, "width").sum(0), png)
    found = pixels(png)
    assert (found[:10] == 1).all()
    reds = (found[..., 0] > 0.85) & (found[..., 1] < 0.8) & (found[..., 2] < 0.85)
    assert size == 1 or reds.sum() > 200  # random truths: too confident


@pytest.mark.filterwarnings("ignore:Glyph")
def test_chinese_names(tmp_path):
    """Drawn with an installed Chinese font; without one matplotlib warns and draws boxes."""
    draw_confusion(np.eye(2, dtype=int), ["体育", "财经"], tmp_path / "c.png")
    pixels(tmp_path / "c.png")
