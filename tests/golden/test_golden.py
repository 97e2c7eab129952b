"""Configs, parameters and losses are those on file; `python -m tests.golden.regenerate` puts new ones there."""

import json

import pytest

from tests.golden import regenerate

HINT = "if this change is meant: python -m tests.golden.regenerate"


@pytest.mark.parametrize("name", regenerate.everything())
def test_text(name):
    path = regenerate.FOLDER / name
    assert path.is_file(), HINT
    assert path.read_text(encoding="utf-8") == regenerate.everything()[name], HINT


def test_no_file_is_left_over():
    found = {p.name for p in (*regenerate.FOLDER.glob("*.json"), *regenerate.FOLDER.glob("*.txt"))}
    assert found == {*regenerate.everything(), "losses.json"}, HINT


def test_losses():
    expected = json.loads((regenerate.FOLDER / "losses.json").read_text())
    assert json.loads(regenerate.losses()) == pytest.approx(expected, rel=2e-4), HINT
