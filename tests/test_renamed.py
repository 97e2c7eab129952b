"""Runs of before classes moved: their configs load, to the field, by the one table of old paths."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from lm.config import from_json, load, to_json
from lm.renamed import MOVED, current

OLD = sorted((Path(__file__).parent / "old").glob("*.config.json"))  # as commit 01524b2 wrote them


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name.partition(".")[0])
def test_a_config_of_before_is_the_same_config(path):
    name = path.name.partition(".")[0]
    assert to_json(from_json(path.read_text())) == to_json(load(f"configs/{name}.py"))


def test_every_old_path_leads_to_a_class_or_a_module():
    for old, new in MOVED.items():
        module, _, name = new.rpartition(".")
        found = getattr(importlib.import_module(module), name, None) or importlib.import_module(new)
        assert dataclasses.is_dataclass(found) or hasattr(found, "__file__"), old
    assert current("lm.data.tokenizers.BytePair") == "lm.data.tokenizer.tokenizer.BytePair"
    assert current("lm.objectives.causal.Causal") == "lm.objectives.causal.Causal"


def test_what_is_saved_names_todays_paths():
    def types(value):
        if isinstance(value, dict):
            yield from [value["type"]] if "type" in value else []
            value = list(value.values())
        for inner in value if isinstance(value, list) else []:
            yield from types(inner)

    for path in OLD:
        names = set(types(json.loads(to_json(from_json(path.read_text())))))
        assert all(current(name) == name for name in names)
