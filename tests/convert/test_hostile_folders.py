"""Values of config.json and tokenizer_config.json that no folder should have: a line each, before anything is allocated."""

import json
import time

import pytest

from lm.convert.convert import load
from lm.data.tokenizer.tokenizer import Bytes, Tokenizer
from lm.errors import UserError
from lm.sizes import memory
from tests.convert.test_families import CASES, make
from tests.marks import quick

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ODD = (10**12, -1, 0, 2.5, float("nan"), float("inf"), 1e308, "two", True, None, [], [1], {}, {"a": 1}, 10**400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile")
    make("gpt2", path)
    return path


def changed(folder, settings, **fields):
    (folder / "config.json").write_text(json.dumps({**settings, **fields}))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n_positions", 10**12, "from 1 to 2,147,483,647"), ("vocab_size", 10**12, "from 1 to"),
        ("n_head", "two", "must be a whole number"), ("n_layer", 2.5, "must be a whole number"),
        ("n_layer", 10**12, "from 1 to 10,000"), ("n_layer", 9000, "lacks tensors of the backbone"),
        ("n_embd", -20, "from 1 to"), ("n_embd", True, "from 1 to"), ("layer_norm_epsilon", float("nan"), "a number from 0"),
        ("resid_pdrop", 7, "from 0 to 1"), ("activation_function", ["gelu"], "must be a text"),
        ("architectures", "GPT2", "a list of texts"), ("model_type", 5, "must be a text"), ("n_head", 10**400, "must be"),
        ("vocab_size", 2**31 - 1, "one of the two is another model's"), ("n_positions", 2**31 - 1, "another model's"),
        ("n_inner", 2**30, "another model's"), ("eos_token_id", "end", "a token's id"),
        ("tie_word_embeddings", 5, "true or false"),
    ],
)  # fmt: skip
def test_odd_values_are_named(field, value, said, folder):
    settings, began = json.loads((folder / "config.json").read_text()), time.monotonic()
    changed(folder, settings, **{field: value})
    try:
        with pytest.raises(UserError, match=said) as error:
            load(folder)
    finally:
        changed(folder, settings)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert time.monotonic() - began < 20


def test_more_than_the_machine_has(folder, monkeypatch):
    monkeypatch.setattr("lm.sizes.memory", lambda: 1000)
    with pytest.raises(UserError, match=r"needs .* this machine has 1 KB"):
        load(folder)
    assert memory() > 1000


@pytest.mark.parametrize("name", quick(sorted(CASES), ("t5",)))
def test_whatever_a_field_holds(name, tmp_path):
    """Loaded, or a line: each field that the file has, with each odd value."""
    make(name, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    pairs = [(field, value) for field in settings for value in ODD]
    for field, value in pairs[:: 1 if len(pairs) < 60 else len(pairs) // 60]:
        changed(tmp_path, settings, **{field: value})
        try:
            load(tmp_path)
        except UserError as error:
            assert "\n" not in str(error), (field, value)  # noqa: PT017


@pytest.mark.parametrize(
    "text",
    ["[]", '{"eos_token": 5}', '{"eos_token": [1]}', '{"eos_token": {"content": 5}}', "5", "null", '{"bos_token": 5}',
     '{"separator": 5}', "[" * 100_000, "{"],
)  # fmt: skip
def test_tokenizer_configs(text, tmp_path):
    Bytes().build(lambda: ()).save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer_config\.json") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": 5}')
    assert Tokenizer.load(tmp_path).vocab == 257


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["model"]["vocab"].update({"a": 4 * 10**9}), "no id of a token"),
        (lambda s: s["model"]["vocab"].update({"a": -1}), "no id of a token"),
        (lambda s: s["model"]["vocab"].update({"a": 1.5}), "no id of a token"),
        (lambda s: s["added_tokens"][0].update({"id": 10**12}), "no id of a token"),
        (lambda s: s.update(normalizer=[{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 9), "as long"),
        (lambda s: s.update(normalizer=[{"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 2000}]), "as long"),
        (lambda s: s.update(model=5), "cannot be read as a tokenizer"),
    ],
)
def test_tokenizers_that_would_take_all_memory(change, said, tmp_path):
    """Their library ends the process where memory ends."""
    Bytes().build(lambda: ()).save(tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    change(saved)
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=said) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)
