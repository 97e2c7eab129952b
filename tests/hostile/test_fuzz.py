"""Thousands of invented inputs to every reader: a result, or a UserError of one line; each within a deadline.

HYPOTHESIS budget: some 500 inputs by default, 20,000 with -m slow; the seed is fixed.
"""
# ruff: noqa: E501  (tables read best with a case a line)

import json
import string
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.config import arguments, from_json, load, override, parse, to_json
from lm.errors import UserError
from tests.hostile.typed import TINY

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.integers(-(10**40), 10**40)
JSONS = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4), max_leaves=12
)
ODD = st.text(st.sampled_from('{}[]",:\\0123456789.eE-+ truefalsn\n\t\0\ud800é\u2028'), max_size=80)


@cache
def config():
    return load(TINY.partition(":")[0])


def leaves(value, path: tuple = ()):
    """List the paths of everything in a tree of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from leaves(inner, (*path, key))


PATHS = list(leaves(json.loads(to_json(config()))))
FIELDS = [".".join(map(str, p)) for p in PATHS if not any(isinstance(k, int) for k in p)]


def replaced(path: tuple, value):
    whole = json.loads(to_json(config()))
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


def in_file(read: Callable[[Path], object], ending: str) -> Callable[[str | bytes], object]:
    """Make a reader of files one of text or bytes."""

    def work(content: str | bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"x{ending}"
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
            return read(path)

    return work


def examples(source) -> list:
    return list(source.open())


def labelled(path: Path) -> list:
    from lm.data.labelled.files import Labelled

    return examples(Labelled(path=str(path)))


def conll(path: Path) -> list:
    from lm.data.labelled.columns import Columns

    return examples(Columns(path=str(path)))


def squad(path: Path) -> list:
    from lm.data.labelled.questions import Questions

    return examples(Questions(path=str(path)))


def running(path: Path) -> list:
    from lm.data.sources import source_from

    reader = source_from(str(path), None).open()
    return [reader[i] for i in range(len(reader))]


def published(settings_: dict) -> object:
    from lm.convert.convert import family_of

    return family_of(settings_)


def published_file(path: Path) -> object:
    from lm.convert.convert import load as load_folder

    return load_folder(path.parent)


def regex(expression: str) -> object:
    from lm.decode.grammar.automaton import automaton

    return automaton(expression, "regex")


def schema(value: object) -> object:
    from lm.decode.grammar.schema import to_regex

    return to_regex(value)


GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 400}
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 400}
LLAMA = {**BERT, "model_type": "llama", "num_key_value_heads": 1, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
MODELS = st.builds(
    lambda base, key, value: {**base, key: value},
    st.sampled_from([GPT2, BERT, LLAMA]), st.sampled_from([*GPT2, *LLAMA, "architectures", "hidden_act", "layer_norm_eps"]), JSONS,
)  # fmt: skip
QA = st.fixed_dictionaries({"data": st.lists(st.fixed_dictionaries({"paragraphs": st.lists(
    st.fixed_dictionaries({"context": st.text() | JSONS, "qas": JSONS | st.lists(st.fixed_dictionaries({
        "id": JSONS, "question": JSONS, "answers": JSONS | st.lists(st.fixed_dictionaries({"text": JSONS, "answer_start": JSONS}), max_size=2)}),
        max_size=2)}), max_size=2) | JSONS}) | JSONS, max_size=2) | JSONS})  # fmt: skip
WORDS = st.text(st.sampled_from("ab \t\n\rOBI-PER\"',\u00a0\x00é"), max_size=60)
KEYS = st.sampled_from(["type", "enum", "const", "anyOf", "properties", "required", "items", "minItems", "maxItems", "minLength",
                        "maxLength", "pattern", "minimum", "maximum", "$ref", "$defs", "additionalProperties", "format"])  # fmt: skip
SCHEMAS = st.recursive(
    SCALARS | st.sampled_from(["string", "integer", "object", "array", "#/$defs/a", "#"]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(KEYS | st.sampled_from("ab"), x, max_size=4), max_leaves=10,
)  # fmt: skip
REGEX = st.text(st.sampled_from("ab01(){}[]|*+?.\\,^$-:=!<>Pdws9"), max_size=24)
LINES = st.lists(JSONS | ODD, max_size=4).map(lambda xs: "\n".join(x if isinstance(x, str) else json.dumps(x) for x in xs))

# name -> (reader, inputs)
READERS: dict[str, tuple[Callable, st.SearchStrategy]] = {
    "from_json of one wrong value": (lambda x: from_json(json.dumps(replaced(*x))), st.tuples(st.sampled_from(PATHS), JSONS)),
    "from_json of anything": (from_json, ODD | JSONS.map(json.dumps)),
    "overrides": (lambda x: override(config(), [x]), st.tuples(st.sampled_from(FIELDS) | st.text(max_size=20), ODD | st.text(max_size=12))),
    "typed values": (lambda x: parse(x[1], x[0], "x"), st.tuples(st.sampled_from([int, float, bool, str, tuple[int, ...]]), ODD)),
    "config arguments": (lambda x: arguments(lambda text="", dropout=0.1: None, x), st.text(string.printable, max_size=30)),
    "model settings": (published, MODELS | st.dictionaries(st.text(max_size=9), JSONS, max_size=3)),
    "model folders": (in_file(published_file, "/../config.json"), MODELS.map(json.dumps) | ODD),
    "JSON lines of examples": (in_file(labelled, ".jsonl"), LINES | st.binary(max_size=60)),
    "JSON lines of text": (in_file(running, ".jsonl"), LINES | st.binary(max_size=60)),
    "csv": (in_file(labelled, ".csv"), WORDS | ODD | st.binary(max_size=60)),
    "tsv": (in_file(labelled, ".tsv"), WORDS | ODD),
    "CoNLL": (in_file(conll, ".conll"), WORDS | st.binary(max_size=60)),
    "SQuAD": (in_file(squad, ".json"), QA.map(json.dumps) | ODD | st.binary(max_size=60)),
    "parquet": (in_file(running, ".parquet"), st.binary(max_size=80)),
    "schemas": (schema, SCHEMAS),
    "regular expressions": (regex, REGEX | st.text(max_size=12)),
}  # fmt: skip
READERS["model folders"] = (
    in_file(lambda path: published_file(path.rename(path.with_name("config.json"))), ""),
    READERS["model folders"][1],
)


def fuzz(name: str, count: int) -> None:
    read, inputs = READERS[name]

    @settings(
        max_examples=count, deadline=timedelta(seconds=20), database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs)
    def attempt(value) -> None:
        try:
            read(value)
        except UserError as error:
            line = str(error)
        else:
            return
        assert line.strip()
        assert len(line) < 4000

    attempt()


@pytest.mark.parametrize("name", READERS)
def test_some_invented_inputs_give_a_result_or_a_line(name):
    fuzz(name, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_twenty_thousand_invented_inputs_give_a_result_or_a_line(name):
    fuzz(name, 20_000 // len(READERS))
