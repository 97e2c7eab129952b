"""Files of labelled examples as they are read: every form, and what is said of each mistake."""

import json

import numpy as np
import pytest

from lm.data.examples import Columns, Documented, Entities, ExampleSet, Labelled, Questions, examples_from, labelled
from lm.data.labelled import split
from lm.data.prepare import Data, prepare
from lm.data.sources import Mixture, Text
from lm.data.tokenizers import BytePair, Bytes
from lm.errors import UserError


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_tables_keep_quotes_lines_and_their_place(tmp_path):
    path = write(tmp_path / "a.csv", '\ufefftext,label\n"one, ""two""\nthree",x\nfour 🙂,y\n')
    found = Labelled(path=path).open()
    assert [e.values for e in found] == [{"text": 'one, "two"\nthree', "label": "x"}, {"text": "four 🙂", "label": "y"}]
    assert [e.where for e in found] == [f"{path}:2", f"{path}:4"]
    tabs = Labelled(path=write(tmp_path / "b.tsv", '0\t"a\n1\tb"\n'), columns=("label", "text"), quoted=False).open()
    assert [e.values["text"] for e in tabs] == ['"a', 'b"']


def test_lines_keep_numbers_and_lists(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "北京", "label": 3}\n\n{"text": "b", "label": ["x", "y"]}\n')
    found = Labelled(path=path).open()
    assert [e.values["label"] for e in found] == [3, ["x", "y"]]
    assert found[1].where == f"{path}:3"


def test_sentences_of_words_with_tags(tmp_path):
    text = "-DOCSTART- -X- O\n\nAnna NN B-P\nran VB O\r\n\n\n# note\nBerg NN I-P\n"
    found = Columns(path=write(tmp_path / "a.conll", text), comments=True).open()
    assert [(e.values["words"], e.values["tags"]) for e in found] == [(["Anna", "ran"], ["B-P", "O"]), (["Berg"], ["I-P"])]
    assert [e.where.rpartition(":")[2] for e in found] == ["3", "8"]


def test_entities_are_characters_of_the_right_kind(tmp_path):
    line = "19980101-01-001-001/m 江/nr 泽民/nr 在/p [北京/ns 大学/n]nt 和/c 上海/ns 说/v\n"
    (found,) = Entities(path=write(tmp_path / "a.txt", line)).open()
    assert "".join(found.values["words"]) == "江泽民在北京大学和上海说"
    expected = "B-PER I-PER I-PER O B-ORG I-ORG I-ORG I-ORG O B-LOC I-LOC O"
    assert found.values["tags"] == expected.split()
    assert found.values["spaced"] is False


SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "Ana was born in Rome.", "qas": [
    {"id": "1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 16}]},
    {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
]}]}]}  # fmt: skip
CMRC = [{"context_id": "c", "context_text": "李雷住在北京。", "qas": [{"query_id": "q", "query_text": "住哪里？",
         "answers": ["北京", "在北京"]}]}]  # fmt: skip


def test_questions_of_both_forms(tmp_path):
    squad = Questions(path=write(tmp_path / "a.json", json.dumps(SQUAD))).open()
    assert [(e.values["answers"], e.values["starts"]) for e in squad] == [(["Rome"], [16]), ([], [])]
    assert squad[0].group == "Ana was born in Rome."
    (cmrc,) = Questions(path=write(tmp_path / "b.json", json.dumps(CMRC))).open()
    assert (cmrc.values["answers"], cmrc.values["starts"]) == (["北京", "在北京"], [4, 3])


def moved(start: int) -> str:
    broken = json.loads(json.dumps(SQUAD))
    broken["data"][0]["paragraphs"][0]["qas"][0]["answers"][0] |= {"answer_start": start, "text": "Paris"}
    return json.dumps(broken)


MISTAKES = {
    "short row": ("a.csv", "text,label\none\n", Labelled, ":2: 1 fields where there are 2"),
    "quotes": ("a.csv", 'text,label\n"one" x,y\n', Labelled, ":2:"),
    "two columns of a name": ("a.csv", "a,a\n1,2\n", Labelled, "two columns of one name"),
    "no JSON": ("a.jsonl", '{"text": "a"}\n{"text": \n', Labelled, ":2: not JSON"),
    "no object": ("a.jsonl", "[1]\n", Labelled, ":1: a list, not an object"),
    "half a pair": ("a.jsonl", '{"text": "\\ud83d"}\n', Labelled, ":1: 'text' has half a surrogate pair"),
    "unknown form": ("a.xls", "x", Labelled, "name it .csv, .tsv or .jsonl"),
    "no tag": ("a.conll", "Anna\n", Columns, ":1: 'Anna' has a word and no tag"),
    "not tagged": ("a.txt", "江泽民 在\n", Entities, ":1: '江泽民' is not WORD/TAG"),
    "no questions": ("a.json", '{"x": 1}', Questions, "neither SQuAD's form"),
    "answer elsewhere": ("a.json", moved(3), Questions, "question 1: the answer 'Paris' is not at character 3"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_file_and_line(name, tmp_path):
    file, text, source, message = MISTAKES[name]
    path = write(tmp_path / file, text)
    with pytest.raises(UserError) as error:
        source(path=path).open()
    assert message in str(error.value)
    assert path in str(error.value)


def test_a_share_is_held_out_the_same_way_whatever_the_order(tmp_path):
    lines = [json.dumps({"text": f"text {i}", "label": i % 3}) for i in range(200)]
    found = [split(Labelled(path=write(tmp_path / f"{k}.jsonl", "\n".join(order))).open(), 0.15)
             for k, order in enumerate((lines, lines[::-1]))]  # fmt: skip
    sides = [[{e.values["text"] for e in side} for side in one] for one in found]
    assert sides[0] == sides[1]
    assert len(sides[0][1]) == 30


def test_questions_of_one_paragraph_stay_together(tmp_path):
    many = {"data": [{"paragraphs": [
        {"context": f"Paragraph {i}.", "qas": [{"id": f"{i}-{k}", "question": f"{k}?", "answers": []} for k in range(5)]}
        for i in range(20)]}]}  # fmt: skip
    train, held_out = split(Questions(path=write(tmp_path / "a.json", json.dumps(many))).open(), 0.2)
    assert not {e.group for e in train} & {e.group for e in held_out}
    assert len(held_out) == 20


def test_a_corpus_of_examples(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": f"word {i}", "label": "x"}) for i in range(40)))
    data = Data(source=Labelled(path=path), tokenizer=BytePair(vocab=300), validation=0.25)
    corpus, again = prepare(data), prepare(data)
    ((share, train),) = corpus.train
    assert (share, len(train), len(corpus.validation)) == (1.0, 30, 10)
    assert corpus.sha256 == again.sha256
    assert corpus.tokenizer.sha256() == again.tokenizer.sha256()
    mixed = Mixture(sources=(Labelled(path=path), Text(path=path)), weights=(1, 1))
    with pytest.raises(UserError, match="mixture of labelled"):
        prepare(Data(source=mixed, tokenizer=Bytes()))
    with pytest.raises(UserError, match="no running text"):
        train.separator  # noqa: B018


def test_sources_by_name():
    assert examples_from("a.tsv") == Labelled(path="a.tsv")
    assert examples_from("a.conll") == Columns(path="a.conll")
    assert examples_from("a.json") == Questions(path="a.json")
    assert examples_from(None, "next") == Documented(task="next")
    assert labelled(Documented())
    assert not labelled(Text(path="a"))
    with pytest.raises(UserError, match=r"\.csv"):
        examples_from("a.docx")


def test_the_documentation_has_answers_where_it_says():
    found = Documented(task="questions").open()
    for example in found:
        for text, start in zip(example.values["answers"], example.values["starts"], strict=True):
            assert example.values["context"][start:].startswith(text)
    assert len(found) > 1000
    assert 0 < sum(not e.values["answers"] for e in found) < len(found) / 2
    assert ExampleSet("x", list(found)).raw_bytes > 10**5


def test_sets_of_tensorflow_datasets(tmp_path):
    """A set written here and read back: names of classes, lists, SQuAD's nesting."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from lm.data.example_files import _plain

    features = tfds.features.FeaturesDict({
        "text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["no", "yes"]),
        "answers": tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": tfds.features.Scalar(np.int32)}),
        "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B"])),
    })  # fmt: skip
    record = {"text": "北京".encode(), "label": np.int64(1), "tags": np.array([0, 1]),
              "answers": {"text": [b"a"], "answer_start": np.array([3])}}  # fmt: skip
    found = {name: _plain(value, features[name]) for name, value in record.items()}
    assert found == {"text": "北京", "label": "yes", "tags": ["O", "B"], "answers": {"text": ["a"], "answer_start": [3]}}
