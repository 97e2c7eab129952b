"""Noise does what it is named for, at its rate, and nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from lm.evaluation.attacks.perturbations import (
    NEIGHBOURS,
    PERTURBATIONS,
    SHAPES,
    change_case,
    drop_letters,
    misread,
    perturb,
)

TEXT = "The quick brown fox, aged 12, jumps over the lazy dog; modern clowns vow so. " * 40
CHARACTERS = ["swap_letters", "drop_letters", "insert_letters", "mistype", "change_case"]


def noisy(name, text=TEXT, rate=0.1, seed=0):
    return PERTURBATIONS[name](np.random.default_rng(seed), text, rate)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_noise_is_a_function_of_its_seed(name):
    assert noisy(name) == noisy(name) != TEXT
    assert noisy(name, seed=1) != noisy(name)
    assert noisy(name, rate=0) == TEXT
    for text in ("", " ", "12 34"):
        assert len(noisy(name, text, 1).split()) == len(text.split()) or name == "drop_words"


@pytest.mark.parametrize("name", PERTURBATIONS)
@settings(max_examples=40, deadline=None)
@given(text=hs.text(max_size=60), rate=hs.floats(0, 1), seed=hs.integers(0, 9))
def test_any_text(name, text, rate, seed):
    found = noisy(name, text, rate, seed)
    if name in ("swap_letters", "swap_words"):
        assert Counter(found) == Counter(text)
    if name in ("mistype",):
        assert [a for a in text if not a.isalpha()] == [b for a, b in zip(text, found) if not a.isalpha()]
        assert len(found) == len(text)
    if name.startswith("drop") and text.strip(" "):
        assert found.strip(" ")


@pytest.mark.parametrize("name", CHARACTERS)
def test_words_stay(name):
    before, after = TEXT.split(" "), noisy(name, rate=0.5).split(" ")
    assert len(before) == len(after)
    for a, b in zip(before, after):
        assert [c for c in a if not c.isalpha()] == [c for c in b if not c.isalpha()]
        if name != "drop_letters":
            assert abs(len(a) - len(b)) in range(len(a) + 1)
        if name == "swap_letters":
            assert sorted(a) == sorted(b)
        if name == "insert_letters":
            assert len(b) >= len(a)
        if name == "drop_letters":
            assert len(b) <= len(a)
            assert any(c.isalpha() for c in b) == any(c.isalpha() for c in a)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_rate(rate):
    letters = sum(c.isalpha() for c in TEXT)
    cased = change_case(np.random.default_rng(0), TEXT, rate)
    assert sum(a != b for a, b in zip(TEXT, cased)) / letters == pytest.approx(rate, rel=0.15)
    dropped = drop_letters(np.random.default_rng(0), TEXT, rate)
    inner = sum(a.isalpha() and b.isalpha() for a, b in zip(TEXT, TEXT[1:]))  # noqa: RUF007
    assert (len(TEXT) - len(dropped)) / inner == pytest.approx(rate, rel=0.15)


def test_keys():
    assert set(NEIGHBOURS["g"]) == set("fhtyvb")
    assert set(NEIGHBOURS["q"]) == set("wa")
    assert set(NEIGHBOURS["p"]) == set("ol") - {""}
    assert all(a in NEIGHBOURS[b] for a in NEIGHBOURS for b in NEIGHBOURS[a])
    for a, b in zip(TEXT, noisy("mistype", rate=1)):
        assert a == b if not a.isalpha() else b.lower() in NEIGHBOURS[a.lower()] and a.isupper() == b.isupper()
    assert noisy("mistype", "привет 北京", 1) == "привет 北京"


def test_misread_uses_shapes():
    assert misread(np.random.default_rng(0), "rn", 1) == "m"
    assert misread(np.random.default_rng(0), "xyz", 1) == "xyz"
    found = {misread(np.random.default_rng(seed), "l", 1) for seed in range(20)}
    assert found == {b for a, b in SHAPES if a == "l"} | {a for a, b in SHAPES if b == "l"}


def test_each_text_has_its_own_noise():
    texts = ["some words here"] * 5
    found = perturb(texts, change_case, 0.5)
    assert len(set(found)) > 1
    assert perturb(texts[:2], change_case, 0.5) == found[:2]
