"""Classification and regression figures equal scikit-learn's and scipy's on random labels."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import stats
from sklearn import metrics as sk

from lm.errors import UserError
from lm.evaluation.metrics import classification as cl
from lm.evaluation.metrics import statistics as st


def labels(seed: int, size: int, classes: int):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, size)
    return truth, np.where(rng.random(size) < 0.6, truth, rng.integers(0, classes, size))


@pytest.mark.parametrize("names", [None, ["cat", "dog", "eel", "fox"]])
@pytest.mark.parametrize(("size", "classes"), [(1, 2), (7, 2), (200, 4), (30, 4)])
@pytest.mark.filterwarnings("ignore")
def test_scores_equal_scikit_learn(size, classes, names):
    truth, predicted = labels(size, size, classes)
    if names:
        truth, predicted = ([names[k] for k in x] for x in (truth, predicted))
    found = cl.scores(truth, predicted)
    assert found["accuracy"].value == pytest.approx(sk.accuracy_score(truth, predicted))
    assert found["matthews"].value == pytest.approx(sk.matthews_corrcoef(truth, predicted))
    assert found["balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    for how in ("macro", "micro", "weighted"):
        expected = sk.precision_recall_fscore_support(truth, predicted, average=how, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected):
            assert found[f"{name}/{how}"].value == pytest.approx(value), (name, how)
    each = sk.precision_recall_fscore_support(truth, predicted, average=None, zero_division=0)
    for k, label in enumerate(sorted({*truth, *predicted})):
        for name, values in zip(("precision", "recall", "f1"), each):
            assert found[f"{name}/{label}"].value == pytest.approx(values[k])


@settings(max_examples=60, deadline=None)
@given(hs.lists(hs.tuples(hs.integers(0, 2), hs.integers(0, 2)), min_size=1, max_size=25))
def test_declared_classes_equal_scikit_learn(pairs):
    truth, predicted = zip(*pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sk.f1_score(truth, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
        correlation = sk.matthews_corrcoef(truth, predicted)
    found = cl.scores(truth, predicted, classes=[0, 1, 2])
    assert found["f1/macro"].value == pytest.approx(expected)
    assert found["matthews"].value == pytest.approx(correlation)


def test_errors_are_those_of_resampled_examples():
    """The bootstrap over cells of the confusion matrix is the one over examples."""
    truth, predicted = labels(4, 300, 3)
    found = cl.scores(truth, predicted)

    def direct(i):
        return {
            "f1/macro": sk.f1_score(truth[i], predicted[i], average="macro"),
            "matthews": sk.matthews_corrcoef(truth[i], predicted[i]),
        }

    expected = st.bootstrap(direct, 300, seed=1, replicates=300)
    for name in expected:
        assert found[name].error == pytest.approx(expected[name].error, rel=0.15)
    assert found["accuracy"].error == pytest.approx(found["f1/micro"].error, rel=0.1)


def test_confusion():
    truth, predicted = labels(5, 80, 5)
    counts, classes = cl.confusion(truth, predicted)
    assert classes == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(counts, sk.confusion_matrix(truth, predicted))
    with pytest.raises(UserError, match="label 'c' is none of the classes a, b"):
        cl.confusion(["a"], ["c"], ["a", "b"])


@pytest.mark.filterwarnings("ignore")
def test_multilabel_equals_scikit_learn():
    rng = np.random.default_rng(6)
    truth, predicted = rng.random((2, 60, 5)) < 0.3
    found = cl.multilabel(truth, predicted, names="abcde")
    assert found["subset_accuracy"].value == pytest.approx(sk.accuracy_score(truth, predicted))
    assert found["hamming"].value == pytest.approx(sk.hamming_loss(truth, predicted))
    for how in ("micro", "macro", "weighted"):
        assert found[f"f1/{how}"].value == pytest.approx(sk.f1_score(truth, predicted, average=how, zero_division=0))
    each = sk.f1_score(truth, predicted, average=None, zero_division=0)
    assert [found[f"f1/{name}"].value for name in "abcde"] == pytest.approx(each.tolist())
    with pytest.raises(UserError, match="0 or 1"):
        cl.multilabel([[2]], [[1]])


def test_regression_equals_scipy():
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 6, 90) / 1.0  # ties
    predicted = truth + rng.normal(size=90)
    found = cl.regression(truth, predicted)
    assert found["pearson"].value == pytest.approx(stats.pearsonr(truth, predicted)[0])
    assert found["spearman"].value == pytest.approx(stats.spearmanr(truth, predicted)[0])
    assert found["mse"].value == pytest.approx(sk.mean_squared_error(truth, predicted))
    assert found["mae"].value == pytest.approx(sk.mean_absolute_error(truth, predicted))
    theory = (1 - found["pearson"].value ** 2) / np.sqrt(90)  # large-sample error of normal data
    assert found["pearson"].error == pytest.approx(theory, rel=0.35)
    assert np.isnan(cl.regression([1.0, 1.0], [1.0, 2.0])["pearson"].value)
    assert np.isnan(cl.pearson([0.1] * 3, [0.1] * 3))  # the mean of which is not 0.1
    assert np.isnan(cl.pearson([1, 2, 3], [0.1] * 3))


def test_a_class_may_be_called_like_an_average():
    truth, guess = ["micro", "macro", "macro", "b"], ["micro", "b", "macro", "b"]
    found = cl.scores(truth, guess)
    assert found["f1/macro"].value == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert found["f1/'macro'"].value == pytest.approx(sk.f1_score(truth, guess, average=None, labels=["macro"])[0])
