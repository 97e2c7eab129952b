"""Marks: where words, sentences, phrases and entities begin, from text to tokens on disk."""

import itertools
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Data
from lm.data.corpus import tokenise
from lm.data.corpus.prepare import prepare
from lm.data.sources import Mixture
from lm.data.text.files import JsonLines, Text
from lm.data.text.tagged import Tagged
from lm.data.text.words import ALL, ENTITY, PHRASE, SENTENCE, WORD, Given, Jieba, add_sentences, token_marks, word_marks
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, WordPiece
from lm.errors import UserError

ROOT = Path(__file__).parents[2]
LINE = "迈向/v  充满/v  希望/n  。/w  江/nr  泽民/nr  在/p  [中央/n  人民/n  广播/vn  电台/n]nt  、/w  中国/ns  讲话/v"
TOKENIZERS = [
    Bytes(),
    Characters(),
    BytePair(vocab=257),
    WordPiece(vocab=150),
]  # 257: no piece that reaches over a border


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))


def units(tokens, tokenizer, bit) -> list[str]:
    """Cut a stream at the tokens that have `bit`; separators are left out."""
    cuts = np.flatnonzero(tokens.marks & bit)
    parts = np.split(tokens.tokens, cuts[cuts > 0])
    return [text for part in parts if (text := tokenizer.decode(part).replace(" ", ""))]


def tagged(tmp_path, *lines, **changes) -> Tagged:
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    return Tagged(path=str(tmp_path / "a.txt"), **changes)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_tagged_corpus_gives_words_phrases_and_entities(tmp_path, tokenizer):
    corpus = prepare(Data(source=tagged(tmp_path, LINE), tokenizer=tokenizer, validation=0))
    tokens = corpus.train[0][1]
    assert tokens.marks.dtype == np.uint8
    assert len(tokens.marks) == len(tokens)
    if tokens.separator is not None:
        assert (tokens.marks[tokens.tokens == tokens.separator] == ALL).all()
    look = lambda bit: " ".join(units(tokens, corpus.tokenizer, bit))  # noqa: E731
    assert look(WORD) == "迈向 充满 希望 。 江 泽民 在 中央 人民 广播 电台 、 中国 讲话"
    assert look(PHRASE) == "迈向 充满 希望 。 江 泽民 在 中央人民广播电台 、 中国 讲话"
    assert look(ENTITY) == "迈 向 充 满 希 望 。 江泽民 在 中央人民广播电台 、 中国 讲 话"
    assert look(SENTENCE) == "迈向充满希望。 江泽民在中央人民广播电台、中国讲话"


def test_documents_and_archives(tmp_path):
    lines = ["19980101-01-001-001/m 一/m 二/m", "三/m", "", "四/m"]
    source = tagged(tmp_path, *lines)

    def read(source):
        reader = source.open()
        return [reader[i][:2] for i in range(len(reader)) if reader[i].text]

    assert read(source) == [("一二", True), ("三", True), ("四", True)]
    path = source.path
    assert read(Tagged(path=path, documents="blank")) == [("一二\n", False), ("三", True), ("四", True)]
    assert read(Tagged(path=path, documents="file")) == [("一二\n", False), ("三\n", False), ("四", True)]
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(path, "in/a.txt")
    packed = Tagged(path=f"{tmp_path}/a.tar.gz::in/a.txt")
    assert read(packed) == read(source)
    assert packed.open().signature() != source.open().signature()
    with pytest.raises(UserError, match="has no file 'b'"):
        len(Tagged(path=f"{tmp_path}/a.tar.gz::b").open())
    with pytest.raises(UserError, match="no tar archive"):
        len(Tagged(path=f"{path}::b").open())
    with pytest.raises(UserError, match=r"a\.txt:2: 'words' is not WORD/TAG"):
        len([*map(tagged(tmp_path, "一/m", "words").open().__getitem__, range(2))])
    with pytest.raises(UserError, match="valid: line, blank, file"):
        Tagged(path=path, documents="page")


def test_names_are_one_entity_and_brackets_may_be_text():
    from lm.data.text.tagged import parse_units

    def entities(line):
        found = []
        for unit in parse_units(line, ""):
            if unit.entity and unit.first:
                found.append(unit.word)
            elif unit.entity:
                found[-1] += unit.word
        return found

    assert entities("李/nr 鹏/nr 江/nr 泽民/nr") == ["李鹏", "江泽民"]
    assert entities("克林顿/nr 叶利钦/nr") == ["克林顿", "叶利钦"]
    assert entities("[香港/ns 特别/a 行政区/n]ns 中国/ns") == ["香港特别行政区", "中国"]
    assert entities("[说/v 话/n]l [/w 中国/ns ]/w") == ["中国"]
    assert [unit.word for unit in parse_units("[/w a//w //w ]/w", "")] == ["[", "a/", "/", "]"]


WORDS = st.lists(st.text(alphabet="ab中文é😀.。", min_size=1, max_size=4), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def built():
    text = ["ab中文é😀.。 ba.ab 中文中文 éé"] * 20
    return [vocabulary.build(lambda: text) for vocabulary in TOKENIZERS[:3]]


@given(WORDS)
@settings(max_examples=200, deadline=None)
def test_words_come_back_from_their_tokens(built, words):
    """Of tokenizers that lose nothing: a token begins a word exactly when the characters it brings begin one."""
    text = "".join(words)
    marks = word_marks(len(text), [len(word) for word in words])
    assert np.flatnonzero(marks & WORD).tolist() == np.cumsum([0, *map(len, words)])[:-1].tolist()
    for tokenizer in built:
        ((ids, ends),) = tokenizer.encode_ends([text])
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert ends[-1] == len(text)
        found = token_marks(marks, ends)
        begin = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
        for token, (a, b) in enumerate(zip(begin, np.maximum.accumulate(ends), strict=True)):
            want = np.bitwise_or.reduce(marks[a:b]) if b > a else 0
            assert found[token] == want


def test_sentences():
    text = '他说：“好！”走了。3.14 is pi. "Is it?" he asked\nyes…… e.g.this'
    marks = add_sentences(text, np.zeros(len(text), np.uint8))
    starts = [*np.flatnonzero(marks & SENTENCE).tolist(), len(text)]
    assert [text[a:b] for a, b in itertools.pairwise(starts)] == [
        "他说：“好！”", "走了。", "3.14 is pi. ", '"Is it?" ', "he asked\n", "yes…… ", "e.g.this",
    ]  # fmt: skip
    assert marks[0] == ALL


def test_given_words_lose_their_separator_and_keep_their_fields(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "今天 天气\\n很  好", "b": "是 的"}\n{"a": "", "b": "好"}\n')
    source = JsonLines(path=str(tmp_path / "a.jsonl"), fields=("a", "b"))
    corpus = prepare(Data(source=source, tokenizer=Bytes(), validation=0, words=Given()))
    tokens = corpus.train[0][1]
    assert corpus.tokenizer.decode(tokens.tokens, special=True).split("<|endoftext|>") == [
        "", "今天天气\n很好", "是的", "", "好", "",
    ]  # fmt: skip
    assert units(tokens, corpus.tokenizer, WORD) == ["今天", "天气", "\n", "很", "好", "是的"[:1], "的", "好"]
    assert corpus.bytes == len("今天天气\n很好是的好".encode())
    with pytest.raises(UserError, match="one character"):
        Given(separator="  ")


def test_marks_are_part_of_the_key_and_only_where_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("one two three\nfour five")
    source = Text(path=str(tmp_path / "a.txt"), documents="line")
    plain = prepare(Data(source=source, tokenizer=Bytes(), validation=0))
    marked = prepare(Data(source=source, tokenizer=Bytes(), validation=0, words=Given()))
    assert plain.folder != marked.folder
    assert plain.train[0][1].marks is None
    assert not list(plain.folder.glob("*.marks"))
    assert prepare(Data(source=source, tokenizer=Bytes(), validation=0, words=Given())).folder == marked.folder
    lines = []
    (marked.folder / "train-0.marks").unlink()
    (marked.folder / "train-0.marks").write_bytes(b"x")
    prepare(Data(source=source, tokenizer=Bytes(), validation=0, words=Given()), report=lines.append)
    assert "cut short: set aside as" in lines[0]
    with pytest.raises(UserError, match="words of its own"):
        prepare(Data(source=tagged(tmp_path, LINE), words=Given()))
    with pytest.raises(UserError, match="some of these have marked words"):
        prepare(Data(source=Mixture(sources=(source, tagged(tmp_path, LINE)), weights=(1.0, 1.0)), tokenizer=Bytes()))


def test_a_single_document_is_cut_with_its_marks(tmp_path):
    (tmp_path / "a.txt").write_text("ab cde f gh " * 40)
    corpus = prepare(Data(source=Text(path=str(tmp_path / "a.txt")), tokenizer=Characters(), words=Given()))
    tokens = corpus.validation
    assert len(tokens) == len(tokens.marks) == 320 // 20
    assert units(tokens, corpus.tokenizer, WORD)[-4:] == ["ab", "cde", "f", "gh"]


def test_jieba(tmp_path):
    pytest.importorskip("jieba")
    text = "小明硕士毕业于中国科学院计算所。Hello world 我来到北京"
    (tmp_path / "a.txt").write_text(text)
    corpus = prepare(Data(source=Text(path=str(tmp_path / "a.txt")), tokenizer=Bytes(), validation=0, words=Jieba()))
    found = units(corpus.train[0][1], corpus.tokenizer, WORD)
    assert "".join(found) == text.replace(" ", "")
    assert {"硕士", "毕业", "Hello", "world", "北京"} <= set(found)


def test_jieba_that_is_not_there(tmp_path, monkeypatch):
    from lm.data.text import words

    words._jieba.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    (tmp_path / "a.txt").write_text("中文")
    with pytest.raises(UserError, match="pip install jieba"):
        prepare(Data(source=Text(path=str(tmp_path / "a.txt")), words=Jieba()))


KILLED = """
    import os, signal, sys
    from lm.data.corpus import tokenise
    from lm.data.corpus.corpus import Data
    from lm.data.corpus.prepare import prepare
    from lm.data.text.tagged import Tagged
    from lm.data.tokenizer.tokenizer import Bytes, Tokenizer

    kill_at, path = int(sys.argv[1]), sys.argv[2]
    tokenise.BATCH_CHARACTERS = 300
    encode, calls = Tokenizer.encode_ends, 0

    def encode_ends(self, texts):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, texts)

    Tokenizer.encode_ends = encode_ends
    prepare(Data(source=Tagged(path=path), tokenizer=Bytes(), validation=0.3))
    print(calls)
"""


def test_a_killed_run_goes_on_with_its_marks(tmp_path):
    source = tagged(tmp_path, *(f"第{i}/m {LINE}" for i in range(60)))
    (tmp_path / "killed.py").write_text(textwrap.dedent(KILLED))

    def run(kill_at: int, folder: str):
        env = os.environ | {"LM_CACHE": str(tmp_path / folder), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(tmp_path / "killed.py"), str(kill_at), source.path]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    total = int(run(0, "straight").stdout)
    assert total > 4
    assert run(3, "killed").returncode == -signal.SIGKILL
    (partial,) = (tmp_path / "killed" / "corpora").glob("*.partial")
    with open(partial / "train-0.marks", "ab") as file:
        file.write(b"\xff" * 11)
    assert int(run(0, "killed").stdout) == total - 2
    for name in ("train-0.bin", "train-0.marks", "validation.marks"):
        one, two = (next((tmp_path / f / "corpora").glob(f"*/{name}")) for f in ("straight", "killed"))
        assert one.read_bytes() == two.read_bytes(), name


def test_marks_that_a_power_cut_lost_start_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenise, "BATCH_PARTS", 5)
    data = Data(source=tagged(tmp_path, *(f"第{i}/m" for i in range(30))), tokenizer=Bytes())
    with monkeypatch.context() as patch:
        patch.setattr(tokenise.Tokenisation, "_finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(data)
    (partial,) = (tmp_path / "cache" / "corpora").glob("*.partial")
    (partial / "train-0.marks").write_bytes(b"")
    tokens = prepare(data).train[0][1]
    assert len(tokens.marks) == len(tokens)


def test_an_archive_that_is_cut_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(os.urandom(20000).hex().encode())
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    raw = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=r"a\.tar\.gz is no tar archive, or damaged"):
        len(Tagged(path=f"{tmp_path}/a.tar.gz::a.txt").open())
