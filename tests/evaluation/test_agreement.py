"""Kappa and alpha against published worked examples."""

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.metrics.agreement import counts_of, fleiss_kappa, krippendorff_alpha

# Fourteen judges, ten subjects, five categories: kappa 0.210 (the worked example of Wikipedia's "Fleiss' kappa").
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
# Four observers, twelve units: alpha 0.743 nominal, 0.849 interval (Krippendorff 2011, section C).
OBSERVERS = ("123321412...", "1233224125.3", ".33323422 51.".replace(" ", ""), "12332441251.")


def units(observers):
    return [[None if c == "." else int(c) for c in unit] for unit in zip(*observers)]


def test_fleiss():
    found = fleiss_kappa(FLEISS)
    assert found["fleiss_kappa"].value == pytest.approx(0.210, abs=5e-4)
    assert found["agreement"].value == pytest.approx(0.378, abs=5e-4)
    perfect = fleiss_kappa([[3, 0], [0, 3]])
    assert perfect["fleiss_kappa"].value == 1
    assert perfect["agreement"].value == 1
    with pytest.raises(UserError, match="item 1 has 2 judgements, item 0 3: use krippendorff_alpha"):
        fleiss_kappa([[3, 0], [1, 1]])


def test_krippendorff():
    ratings = units(OBSERVERS)
    assert krippendorff_alpha(ratings)["krippendorff_alpha"].value == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(ratings, "interval")["krippendorff_alpha"].value == pytest.approx(0.849, abs=5e-4)
    # Three coders, fifteen units (the worked example of Wikipedia's "Krippendorff's alpha").
    wikipedia = units((".....34121133.3", "1.213343.......", "..21344.21133.4"))
    assert krippendorff_alpha(wikipedia)["krippendorff_alpha"].value == pytest.approx(0.691, abs=5e-4)
    assert krippendorff_alpha(wikipedia, "interval")["krippendorff_alpha"].value == pytest.approx(0.811, abs=5e-4)


def test_alpha_and_fleiss_agree_on_many_items():
    """With all judgements there they differ by the small-sample term only."""
    rng = np.random.default_rng(0)
    ratings = [rng.choice([k % 3, rng.integers(3)], 3).tolist() for k in range(600)]
    counts, names = counts_of(ratings)
    assert names == [0, 1, 2]
    alpha = krippendorff_alpha(ratings)["krippendorff_alpha"]
    kappa = fleiss_kappa(counts)["fleiss_kappa"]
    assert 1 - alpha.value == pytest.approx((1 - kappa.value) * (1 - 1 / 1800), rel=1e-9)
    assert alpha.error == pytest.approx(kappa.error, rel=0.01)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="no item has two ratings"):
        krippendorff_alpha([[1, None], [None, 2]])
    with pytest.raises(UserError, match="valid: nominal, interval"):
        krippendorff_alpha([[1, 1]], "ordinal")
