"""Sources of documents with fields: JSON Lines and tables, and their borders in the stream."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Data
from lm.data.corpus.prepare import prepare
from lm.data.rows.packing import boundaries
from lm.data.rows.records import Documents
from lm.data.text.files import JsonLines
from lm.data.text.tables import Table
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, WordPiece
from lm.errors import UserError

HARD = ["<|endoftext|>", "[SEP]", "\x1e\x1f\x00", "", "a,b\n\"c\"", "\ufdd0\uffff", "é中\r\n"]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))


def fields(tokens, tokenizer) -> list[list[str]]:
    low, high, first = boundaries(tokens)
    texts = [tokenizer.decode(tokens.tokens[a:b]) for a, b in zip(low, high, strict=True)]
    return [texts[a:b] for a, b in itertools.pairwise(first)]


def read(source) -> list[list[str]]:
    reader = source.open()
    pieces = [reader[i] for i in range(len(reader))]
    return [[p.text[a:b] for a, b in zip((0, *p.borders), (*p.borders, len(p.text)))] for p in pieces]


@pytest.mark.parametrize("tokenizer", [Bytes(), BytePair(vocab=300)])
def test_no_text_can_look_like_a_border(tmp_path, tokenizer):
    pairs = [[one, two + "."] for one in HARD for two in HARD]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"s": s, "t": t}) + "\n" for s, t in pairs))
    source = JsonLines(path=str(tmp_path / "a.jsonl"), fields=("s", "t"))
    assert read(source) == pairs
    corpus = prepare(Data(source=source, tokenizer=tokenizer, validation=0.3))
    found = [fields(t, corpus.tokenizer) for t in (corpus.train[0][1], corpus.validation)]
    assert sorted(found[0] + found[1]) == sorted(pairs)
    assert corpus.bytes == sum(len((s + t).encode()) for s, t in pairs)
    assert Documents().open(corpus.train[0][1]).count > 0


def test_turns_and_single_fields(tmp_path):
    records = [{"who": "A", "turns": ["hi", "", "bye"], "text": "plain"}, {"who": "B", "turns": [], "text": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    path = str(tmp_path / "a.jsonl")
    assert read(JsonLines(path=path, fields=("who", "turns"))) == [["A", "hi", "", "bye"], ["B"]]
    assert read(JsonLines(path=path, fields=("turns",))) == [["hi", "", "bye"], [""]]
    assert read(JsonLines(path=path)) == [["plain"], ["x"]]
    with pytest.raises(UserError, match=r"a\.jsonl:1: field 'turns' is list, not a string"):
        read(JsonLines(path=path, field="turns"))
    (tmp_path / "a.jsonl").write_text('{"turns": ["a", 3]}')
    with pytest.raises(UserError, match=r"a\.jsonl:1: field 'turns'"):
        read(JsonLines(path=path, fields=("turns",)))


def test_the_same_text_with_other_borders_is_another_corpus(tmp_path):
    digests = set()
    for name, turns in (("a", ["ab", "c"]), ("b", ["a", "bc"])):
        (tmp_path / name).write_text(json.dumps({"turns": turns}))
        source = JsonLines(path=str(tmp_path / name), fields=("turns",))
        digests.add(prepare(Data(source=source, tokenizer=Bytes(), validation=0)).sha256)
    assert len(digests) == 2


def test_what_fields_need(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"s": f"a{i}", "t": "b"}) + "\n" for i in range(9)))
    source = JsonLines(path=str(path), fields=("s", "t"))
    with pytest.raises(UserError, match="tokenizer without a separator"):
        prepare(Data(source=source, tokenizer=Characters()))
    corpus = prepare(Data(source=source, tokenizer=WordPiece(vocab=100)))
    assert fields(corpus.train[0][1], corpus.tokenizer)[0] == ["a0", "b"]
    path.write_text(json.dumps({"s": "a" * 99, "t": "b"}))
    with pytest.raises(UserError, match="fields cannot be cut"):
        prepare(Data(source=source, tokenizer=Bytes()))


CELLS = st.lists(st.lists(st.text(alphabet='a",\t\n\ré', max_size=5), min_size=2, max_size=2), min_size=1, max_size=8)


@given(CELLS, st.sampled_from(["csv", "tsv"]))
@settings(max_examples=150, deadline=None)
def test_tables_are_those_of_the_csv_module(tmp_path_factory, rows, kind):
    import csv

    path = tmp_path_factory.mktemp("table") / f"a.{kind}"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, "excel" if kind == "csv" else "excel-tab")
        writer.writerows([["n", "s", "t"], *([str(i), *row] for i, row in enumerate(rows))])
    assert read(Table(path=str(path), fields=("t", "s"))) == [[t, s] for s, t in rows]


def test_several_tables_blank_lines_and_bare_quotes(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfs,t\r\n\r\n1,2\r\n")
    (tmp_path / "b.csv").write_text("t,s\n4,3\n\n")
    (tmp_path / "c.csv").write_text("")
    assert read(Table(path=f"{tmp_path}/*.csv", fields=("s", "t"))) == [["1", "2"], ["3", "4"]]
    (tmp_path / "q.tsv").write_text('s\tt\n"a\tb"c\n')
    assert read(Table(path=f"{tmp_path}/q.tsv", fields=("s", "t"), quoted=False)) == [['"a', 'b"c']]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s,t\n1,2\n1,2,3\n", r"a\.csv:3: 3 fields where there are 2 columns"),
        ('s,t\n1,2\n"x"y,2\n', r"a\.csv:3: "),
        ('s,t\n"1\n\n",2\n3,"4\n', r"a\.csv:5: .*mend the quotes"),
        ("s,u\n1,2\n", r"a\.csv:1: no column 't'.*it has s, u"),
        ("s,t,t\n1,2,3\n", r"a\.csv:1: no column 't', or two"),
    ],
)
def test_broken_tables_name_file_and_line(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read(Table(path=str(tmp_path / "a.csv"), fields=("s", "t")))
    with pytest.raises(UserError, match="name columns"):
        Table(path="a.csv", fields="source")


def test_a_large_field_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("s,t\n" + "x" * 300_000 + ",y\n")
    assert np.sum([len(f) for f in read(Table(path=str(tmp_path / "a.csv"), fields=("s", "t")))[0]]) == 300_001
