"""Constrained decoding: whatever a random model says follows the expression or the schema, in the tokens there are."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, WordPiece
from lm.decode.generate import generate
from lm.decode.grammar import constrained
from lm.decode.grammar.automaton import automaton
from lm.decode.grammar.constrained import classes, distances, from_json_schema, from_regex, piece_bytes, token_bytes
from lm.decode.grammar.schema import to_regex
from lm.decode.processors import Rules
from lm.decode.speed import random_params
from lm.decode.strategies import AncestralSampling, GreedySearch
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from tests.marks import quick

TEXT = '{"name": "Ann", "age": 31} ["a", "bc"] 2021-05-06 true false null -12.5e3 ärger 日本 word words ' * 30
TOKENIZERS = {
    "bytes": Bytes().build(lambda: [TEXT]),
    "characters": Characters().build(lambda: [TEXT + "".join(map(chr, range(32, 127)))]),
    "bpe": BytePair(vocab=400).build(lambda: [TEXT]),
}


@functools.cache
def model(name):
    config = Transformer(vocab=TOKENIZERS[name].vocab, context=256, width=16, depth=1, heads=2, init=0.5, pad_vocab=64)
    return Causal(model=config).resolve(TOKENIZERS[name]), random_params(config)


def texts(name, make, what, new=40, count=16, **options):
    objective, params = model(name)
    grammar = make(what, TOKENIZERS[name], objective.stops(TOKENIZERS[name]), new)
    options = {"strategy": AncestralSampling(temperature=1.5)} | options
    found = generate(
        objective, params, TOKENIZERS[name], ["a"], max_new_tokens=new, num_samples=count, grammar=grammar, **options
    )
    return [sample.text for sample in found], found


EXPRESSIONS = [
    r"[a-z]{3,5} [0-9]+", r"(yes|no|maybe)( not)?", r"ä+(日本)*", r"[0-9]{4}-[0-9]{2}-[0-9]{2}", r"^[A-Z][a-z]*\.$", r"(a|b)*",
    r"[^x]{10}", r"x", r"(a|ab)(c|bcd)?",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        *(("bytes", e) for e in EXPRESSIONS),
        *((name, EXPRESSIONS[i]) for name in ("bpe", "characters") for i in (0, 2, 6)),
    ],
)
def test_every_text_matches(name, expression):
    for text in texts(name, from_regex, expression)[0]:
        assert re.fullmatch(expression, text), text


def test_in_as_few_tokens_as_there_are():
    for new in (3, 4, 9):
        found, samples = texts("bytes", from_regex, "a(bc)+", new=new)
        assert all(re.fullmatch("a(bc)+", text) for text in found)
        assert max(len(s.tokens) for s in samples) <= new
    with pytest.raises(UserError, match=r"takes at least 3 tokens; raise --max_new_tokens=2"):
        texts("bytes", from_regex, "a(bc)+", new=2)


def test_a_text_ends_where_nothing_follows_or_at_a_stop():
    _, samples = texts("bytes", from_regex, "(ab|abc)", strategy=AncestralSampling(temperature=50.0))
    stop = TOKENIZERS["bytes"].separator
    assert {tuple(s.tokens) for s in samples} == {(97, 98, stop), (97, 98, 99)}


def test_tokens_of_several_characters_are_used():
    _, samples = texts("bpe", from_regex, "(words )*words", new=12)
    assert any(len(s.tokens) < len(s.text) - 3 for s in samples)
    assert len({tuple(s.tokens) for s in samples}) > 5


def test_rules_give_way_to_the_grammar_only_where_they_must():
    found, _ = texts("bytes", from_regex, "[ab]{6}", rules=Rules(suppress=(97,)))
    assert set(found) == {"bbbbbb"}
    found, _ = texts("bytes", from_regex, "a{6}", rules=Rules(no_repeat_ngram=1), strategy=GreedySearch())
    assert set(found) == {"aaaaaa"}


def test_the_distribution_is_the_models_own_among_what_may_follow():
    """One token: probabilities of the allowed ones are the model's, normalised."""
    grammar = from_regex("[abc]", TOKENIZERS["bytes"], (), 1)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 320)), jnp.float32)
    scores = grammar.allow(logits, logits, jnp.zeros(1, jnp.int32), 1)
    assert np.flatnonzero(np.isfinite(scores[0])).tolist() == [97, 98, 99]
    np.testing.assert_array_equal(scores[0, 97:100], logits[0, 97:100])


SCHEMAS = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 3,
     "maximum": 120}, "tags": {"type": "array", "items": {"enum": ["a", "b\"c", 1, None]}, "minItems": 1, "maxItems": 3}},
     "required": ["name", "age"], "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b c.": {"type": "null"}, "d": {"type": "number"}}},
    {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 2},
    {"anyOf": [{"type": "string", "pattern": "^[a-z]{2}-[0-9]+$"}, {"$ref": "#/$defs/pair"}],
     "$defs": {"pair": {"type": "object", "properties": {"x": {"type": "integer", "exclusiveMinimum": -5}},
                        "required": ["x"]}}},
    {"type": "string", "format": "date"},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "object", "additionalProperties": {"type": "integer", "maximum": 10}},
    {"const": {"k": [1, "é"]}},
    {"oneOf": [{"type": "integer", "minimum": 10}, {"type": "null"}]},
    {},
]  # fmt: skip


INSTANCES = [*(("bytes", i) for i in range(len(SCHEMAS))), ("bpe", 0), ("bpe", 3)]


@pytest.mark.parametrize(("name", "which"), quick(INSTANCES, [*INSTANCES[:4], ("bpe", 3)]))
def test_every_text_is_an_instance(name, which):
    schema, jsonschema = SCHEMAS[which], pytest.importorskip("jsonschema")
    for text in texts(name, from_json_schema, json.dumps(schema), new=70)[0]:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


def test_a_schema_in_a_file(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"type": "boolean"}')
    assert set(texts("bytes", from_json_schema, str(path))[0]) == {"true", "false"}


def doubled(keyword, twice):
    """Definitions each of which names the one before twice."""
    text = {"0": {"type": "string"}}
    return text | {str(i): {keyword: twice({"$ref": f"#/$defs/{i - 1}"})} for i in range(1, 40)}


@pytest.mark.parametrize(
    ("make", "what", "words"),
    [
        (from_regex, "(a", "no regular expression"),
        (from_regex, "(?=a)b", "assert"),
        (from_regex, r"(a)\1", "groupref"),
        (from_regex, r"a\b", "it has at"),
        (from_regex, "(?i)a", "flags"),
        (from_regex, "((a|b){1,9999}){1,9999}", "too long"),
        (from_regex, "[ab]*a[ab]{30}", "too many states"),
        (from_regex, "Ω+", "no text of this tokenizer's tokens"),
        (from_json_schema, "nowhere.json", "no such file"),
        (from_json_schema, "{'a': 1}", "no valid JSON"),
        (from_json_schema, '{"type": "array", "uniqueItems": true}', "'uniqueItems' of array"),
        (from_json_schema, '{"type": "number", "minimum": 3}', "'minimum' of number"),
        (from_json_schema, '{"not": {}}', "'not'"),
        (from_json_schema, '{"type": "strin"}', "unknown type 'strin'"),
        (from_json_schema, '{"type": "string", "pattern": ".*"}', "quotes, backslashes"),
        (from_json_schema, '{"type": "string", "format": "ipv4"}', "'ipv4'"),
        (
            from_json_schema,
            '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}',
            "itself",
        ),
        (from_json_schema, '{"type": "object", "properties": {}, "required": ["z"]}', "'z'"),
        (from_json_schema, '{"type": "integer", "minimum": 4, "maximum": 3}', "between 4 and 3"),
        (from_json_schema, '{"type": "string", "minLength": 90}', "at least 92 tokens"),
        # Bounds of size: these took for ever or all memory.
        (from_regex, "(a{1000}){1000}", "too long"),
        (from_regex, "a{999999999}", "too long"),
        (from_regex, "a{" + "9" * 5000 + "}", "no regular expression"),
        (from_regex, "(a?){9000}", "takes too long to compile"),
        (from_regex, "(" * 3000 + "a" + ")" * 3000, "nested too deeply"),
        (from_regex, "a" * 400_001, "400,001 characters"),
        (from_regex, "(" + "ab" * 50_000 + "|" + "ab" * 50_000 + ")", "100,000 characters in a row"),
        (from_regex, r"\q", "bad escape"),
        (from_regex, "a" * 20_000 + "(", "--regex=" + "a" * 60 + "... has"),
        (from_json_schema, json.dumps({"$ref": "#/$defs/39", "$defs": doubled("anyOf", lambda r: [r, r])}), "at #/$defs/13:"),
        (from_json_schema, '{"type": "integer", "maximum": 1' + "0" * 4200 + "}", "at #/maximum: a whole number of at most 40"),
        (from_json_schema, '{"items": ' * 3000 + "{}" + "}" * 3000, "nested deeper"),
        (from_json_schema, '{"type": "string", "maxLength": 20001}', "at #/maxLength: a whole number from 0 to 20,000"),
        (from_json_schema, '{"type": "string", "pattern": "(a{1000}){1000}"}', "too long"),
        (from_json_schema, json.dumps({"enum": ["a" * 400_001]}), "400,000 characters"),
        # The kind of a keyword's value, with its path.
        (from_json_schema, '{"type": 5}', "at #/type: a type or a list of types is needed, not 5"),
        (from_json_schema, '{"type": []}', "at #/type"),
        (from_json_schema, '{"$ref": 5}', "at #/$ref: a text"),
        (from_json_schema, '{"enum": 5}', "at #/enum: a list"),
        (from_json_schema, '{"const": NaN}', "NaN"),
        (from_json_schema, '{"anyOf": []}', "at #/anyOf: a list of one schema or more is needed, not []"),
        (from_json_schema, '{"properties": {"a": {"properties": [1]}}}', "at #/properties/a/properties: an object of schemas"),
        (from_json_schema, '{"properties": {"a": {}}, "required": "a"}', "at #/required: a list of names"),
        (from_json_schema, '{"type": "array", "items": 5}', "at #/items: a schema"),
        (from_json_schema, '{"type": "string", "minLength": -3}', "at #/minLength: a whole number from 0"),
        (from_json_schema, '{"type": "string", "minLength": 1.5}', "at #/minLength"),
        (from_json_schema, '{"type": "string", "minLength": true}', "at #/minLength"),
        (from_json_schema, '{"type": "string", "minLength": 4, "maxLength": 3}', "minLength=4 is above maxLength=3"),
        (from_json_schema, '{"type": "integer", "minimum": "x"}', "at #/minimum"),
        (from_json_schema, '{"type": "string", "pattern": 5}', "at #/pattern"),
    ],
    ids=lambda x: x[:40] if isinstance(x, str) else None,
)
def test_what_cannot_be_followed_is_refused(make, what, words):
    tokenizer = TOKENIZERS["characters"]
    with pytest.raises(UserError) as error:
        make(what, tokenizer, (), 40)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_word_piece_is_refused():
    tokenizer = WordPiece(vocab=120).build(lambda: [TEXT])
    with pytest.raises(UserError, match="spaces between"):
        from_regex("a", tokenizer, (), 5)


def test_pieces_are_the_bytes_of_the_text():
    for name in TOKENIZERS:
        ids = TOKENIZERS[name].encode("ärger words true")
        pieces = token_bytes(TOKENIZERS[name])
        assert b"".join(pieces[i] for i in ids).decode() == "ärger words true"
    assert [piece_bytes(name, False) for name in ("<0xE4>", "<0x+1>", "<0xZZ>")] == [b"\xe4", b"<0x+1>", b"<0xZZ>"]


def test_what_is_large_only_as_written_is_followed():
    """Each of these took for ever: parts that match nothing, definitions that come to nothing, long chains of states."""
    for expression in ("(){4294967000}", "(){0,4294967000}", "((){9000}){9000}"):
        assert automaton(expression, "x")[0].shape == (1, 256)
    empty = doubled("items", lambda r: {"anyOf": [r, r]})
    for schema in empty.values():
        schema |= {"type": "array", "maxItems": 0} if "items" in schema else {}
    assert to_regex({"$ref": "#/$defs/39", "$defs": empty}) == r"(?:\[\])"
    for expression in ("a{9000}", "a{0,9000}"):
        next_SY, ends_S = automaton(expression, "x")
        assert len(ends_S) == 9001
        assert distances(next_SY, ends_S)[0] == (0 if "," in expression else 9000)


def test_classes_hold_every_move(monkeypatch):
    monkeypatch.setattr(constrained, "BLOCK", 6 * 64)
    random = np.random.default_rng(0)
    moves = random.integers(-1, 6, (6, 256)).astype(np.int32)
    pieces = [b"", *(bytes(random.integers(0, 256, n).tolist()) for n in random.integers(1, 5, 300))]
    next_SC, class_V = classes(moves, pieces, "x")
    for piece, column in zip(pieces, class_V):
        for state in range(6):
            at = state if piece else -1
            for byte in piece:
                at = moves[at, byte] if at >= 0 else -1
            assert next_SC[state, column] == at
    assert (next_SC[:, 0] == -1).all()


def test_compiles_once_for_any_model_of_the_sizes():
    """The tables are arguments of the compiled loop, not constants in it."""
    grammar = from_regex("ab*", TOKENIZERS["bytes"], (256,), 5)
    leaves = jax.tree.leaves(grammar)
    assert len(leaves) == 3
    assert all(isinstance(x, jax.Array) for x in leaves)


@pytest.mark.parametrize(
    "expression",
    [
        *EXPRESSIONS,
        "a??b+?",
        "(ab|abc)(d|cd)?",
        "[^a-y\\d]{1,2}",
        "(x*)*y",
        r"[\wé]+",
        r"\W\S\D",
        "",
        "|a",
        "(a{2,3}b){1,2}",
        "ß|é.",
    ],
)
def test_an_automaton_matches_what_python_does(expression):
    next_SY, ends_S = automaton(expression, "x")
    random = np.random.default_rng(0)
    alphabet, texts = "abcdxyz019 -_.éß日🙂A\n٣", set()
    for _ in range(1000):
        texts.add("".join(random.choice(list(alphabet), random.integers(0, 12))))
    for text in [
        *texts,
        *["ab" * n + "c" for n in range(4)],
        "abcd",
        "abccd",
        "2021-05-06",
        "yes not",
        "aab",
        "aabaaab",
    ]:
        state = 0
        for byte in text.encode():
            state = next_SY[state, byte] if state >= 0 else -1
        ours = state >= 0 and bool(ends_S[state])
        theirs = re.fullmatch(expression, text) is not None
        narrow = re.fullmatch(expression, text, re.ASCII) is not None
        assert ours == theirs or (narrow <= ours <= theirs), text


def test_automata_are_minimal():
    for expression, states in (
        ("a", 2),
        ("a|b|c", 2),
        ("(a|b)*abb", 4),
        ("a{5}", 6),
        ("(aa|ab|ba|bb)*", 2),
        ("é|è", 3),
    ):
        assert len(automaton(expression, "x")[1]) == states
