"""Files of labelled examples as they are read: every form, and what is said of each mistake."""

import functools
import json

import pytest

from lm.config import Data
from lm.data.corpus.gather import hold_out_share
from lm.data.corpus.prepare import prepare
from lm.data.labelled.columns import Columns, Entities
from lm.data.labelled.documented import Documented
from lm.data.labelled.files import Labelled
from lm.data.labelled.questions import Questions
from lm.data.labelled.sources import examples_from
from lm.data.labelled.tfds import TfdsExamples
from lm.data.sources import Mixture
from lm.data.text.files import Text
from lm.data.tokenizer.tokenizer import BytePair, Bytes
from lm.data.types import ExampleSet, labelled
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


def sentences(path: str, **choices) -> list[tuple[list[str], list[str]]]:
    return [(one.values["words"], one.values["tags"]) for one in Columns(path=path, **choices).open()]


def test_columns_are_parted_by_spaces_and_tabs_alone(tmp_path):
    spaces = write(tmp_path / "a.conll", "\ufeff10\u00a0000  NN O\n Anna \t NN\tB-P \n \t\n\u3000 SP O\n")
    assert sentences(spaces) == [(["10\u00a0000", "Anna"], ["O", "B-P"]), (["\u3000"], ["O"])]
    tabs = write(tmp_path / "b.conll", "10 000\tNN\tO\nNew York\t\tB-P \n")  # a field may be empty, if nobody asks for it
    assert sentences(tabs) == [(["10 000", "New York"], ["O", "B-P"])]


CONLLU = """# sent_id = 1
# text = Vámonos ya
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\teh\t_\tINTJ\t_\t_\t_\t_\t_\t_
3\tya\tya\tADV\t_\t_\t1\tadvmod\t_\t_

#sent_id = 2
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


def test_words_of_universal_dependencies(tmp_path):
    path = write(tmp_path / "a.conllu", CONLLU)
    found = examples_from(path, "marks").open()
    assert [one.values["words"] for one in found] == [["Vamos", "nos", "ya"], ["#"]]
    assert [one.values["tags"] for one in found] == [["VERB", "PRON", "ADV"], ["SYM"]]
    assert [one.where for one in found] == [f"{path}:4", f"{path}:10"]
    numbers = write(tmp_path / "b.conll", "2-1\tO\n1.1\tO\n#tag\tB-X\n")  # no ids where the word comes first
    assert sentences(numbers) == [(["2-1", "1.1", "#tag"], ["O", "O", "B-X"])]
    places = write(tmp_path / "c.tsv", "1-1\tAnna\tB-P\n1-2\tran\tO\n")  # WebAnno's ids: sentence and word
    assert sentences(places, word=1) == [(["Anna", "ran"], ["B-P", "O"])]


def test_words_and_tags_that_are_numbers(tmp_path):
    lines = '{"tokens": ["a", 3], "ner_tags": [0, 1]}\n{"words": [1.5], "tags": ["O"]}\n{"text": "a", "tags": [7]}\n'
    found = Labelled(path=write(tmp_path / "a.jsonl", lines)).open()
    assert found[0].values == {"tokens": ["a", "3"], "ner_tags": ["0", "1"]}
    assert found[1].values["words"] == ["1.5"]
    assert found[2].values["tags"] == [7]  # of no words


def test_answers_as_hugging_face_writes_them(tmp_path):
    row = {"id": "1", "context": "Ana in Rome", "question": "?", "answers": {"text": ["Rome"], "answer_start": [7]}}
    lines = Labelled(path=write(tmp_path / "a.jsonl", json.dumps(row))).open()
    rows = Questions(path=write(tmp_path / "a.json", json.dumps({"data": [row]}))).open()
    nested = {"data": [{"paragraphs": [{"context": row["context"], "qas": [row]}]}]}
    inner = Questions(path=write(tmp_path / "b.json", json.dumps(nested))).open()
    for (one,) in (lines, rows, inner):
        assert one.values == {**row, "answers": ["Rome"], "starts": [7]}
        assert one.group == "Ana in Rome"


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


def asked(answers, context: str = "Ana was born in Rome.", **more) -> str:
    """One question, its id in line 5."""
    question = {"id": "x1", "question": "Where?", "answers": answers} | more
    return json.dumps({"data": [{"paragraphs": [{"qas": [question], "context": context}]}]}, indent=0)


FAR = "Rome. " + "So it goes. " * 30 + "She was born in Rome, in Rome."


@pytest.mark.parametrize(("start", "place"), [(0, 0), (8, 0), (374, 382), (384, 382), (386, 382), (387, 391), (399, 391)])
def test_an_answer_is_looked_for_near_its_start(start, place, tmp_path):
    assert FAR[382:386] == FAR[391:395] == "Rome"
    (one,) = Questions(path=write(tmp_path / "a.json", asked([{"text": "Rome", "answer_start": start}], FAR))).open()
    assert one.values["starts"] == [place]


def test_questions_tell_their_lines(tmp_path):
    text = json.dumps(SQUAD, indent=1) + "\n"
    first, second = (k for k, line in enumerate(text.split("\n"), 1) if '"id"' in line)
    path = write(tmp_path / "a.json", text)
    assert [one.where for one in Questions(path=path).open()] == [f"{path}:{first}, question 1", f"{path}:{second}, question 2"]
    nameless = [{**CMRC[0], "qas": [{"query_text": "住哪里？", "answers": ["北京"]}] * 2}]
    path = write(tmp_path / "b.json", json.dumps(nameless, indent=0))
    assert [one.where for one in Questions(path=path).open()] == [f'{path}:{k}, question "住哪里？"' for k in (7, 13)]


def test_answers_that_are_none(tmp_path):
    for more in ({"is_impossible": True}, {"is_impossible": 1}):
        (one,) = Questions(path=write(tmp_path / "a.json", asked([{"text": "Rome", "answer_start": 16}], **more))).open()
        assert one.values["answers"] == one.values["starts"] == []
    for answers in (None, [], {"text": [], "answer_start": []}):
        (one,) = Questions(path=write(tmp_path / "b.json", asked(answers, is_impossible=None))).open()
        assert one.values["answers"] == []


MISTAKES = {
    "short row": ("a.csv", "text,label\none\n", Labelled, ":2: 1 fields where there are 2"),
    "quotes": ("a.csv", 'text,label\n"one" x,y\n', Labelled, ":2:"),
    "two columns of a name": ("a.csv", "a,a\n1,2\n", Labelled, "two columns of one name"),
    "no JSON": ("a.jsonl", '{"text": "a"}\n{"text": \n', Labelled, ":2: no valid JSON"),
    "no object": ("a.jsonl", "[1]\n", Labelled, ":1: an object is needed, not a list"),
    "half a pair": ("a.jsonl", '{"text": "\\ud83d"}\n', Labelled, ":1: 'text' has half a surrogate pair"),
    "unknown form": ("a.xls", "x", Labelled, "name it .csv, .tsv or .jsonl"),
    "another width": ("a.conll", "Anna N NP P\n\nran V O\n", Columns, ":3: 3 columns where the file has 4 (line 1); mend"),
    "a column more": ("a.conll", "Anna B-P\nNew York B-P\n", Columns, ":2: 3 columns where the file has 2 (line 1)"),
    "tabs, then spaces": ("a.conll", "Anna\tB-P\nran O\n", Columns, ":2: 1 columns where the file has 2 (line 1)"),
    "an empty tag": ("a.conll", "Anna\tB-P\nran\t\n", Columns, ":2: an empty word or tag"),
    "no such column": ("a.conll", "Anna P\n", functools.partial(Columns, tag=3), ":1: 2 columns in 'Anna P'; set word and tag"),
    "no word": ("a.jsonl", '{"words": ["a", null], "tags": ["O", "O"]}', Labelled, ":1: 'words' holds null, and should hold"),
    "no start": ("a.jsonl", '\n{"answers": ["a"], "starts": ["9"]}', Labelled, ":2: 'starts' holds \"9\", and should hold the"),
    "no starts": ("a.jsonl", '{"answers": ["a"], "starts": 9}', Labelled, ":1: 'starts' is int, not a list"),
    "no tag": ("a.conll", "Anna\n", Columns, ":1: 'Anna' has a word and no tag"),
    "not tagged": ("a.txt", "江泽民 在\n", Entities, ":1: '江泽民' is not WORD/TAG"),
    "no questions": ("a.json", '{"x": 1}', Questions, "neither SQuAD's form"),
    "answer nowhere": (
        "a.json", asked([{"text": "Paris", "answer_start": 3}]), Questions,
        ":8, question x1: the answer 'Paris' is not at character 3 of the paragraph or within 8 of it, where ' was ' stands; "
        "mend answer_start, or the text, which is nowhere in it",
    ),
    "answer elsewhere": (
        "a.json", asked([{"text": "Rome", "answer_start": 7}]), Questions,
        ":8, question x1: the answer 'Rome' is not at character 7 of the paragraph or within 8 of it, where ' bor' stands; "
        "mend answer_start (the text begins at 16)",
    ),
    "start in quotes": ("a.json", asked([{"text": "Rome", "answer_start": "16"}]), Questions,
                        ":8, question x1: the answer_start of 'Rome' is '16', not a number from 0"),
    "start null": ("a.json", asked([{"text": "Rome", "answer_start": None}]), Questions, "of 'Rome' is None, not a number"),
    "start below 0": ("a.json", asked([{"text": "Rome", "answer_start": -5}]), Questions, "of 'Rome' is -5, not a number"),
    "answer a number": ("a.json", asked([1843]), Questions, ":8, question x1: the answer 1843 has no text"),
    "answer null": ("a.json", asked([{"text": None, "answer_start": 3}]), Questions, ":8, question x1: the answer {"),
    "answers a text": ("a.json", asked("Rome"), Questions, ":8, question x1: 'answers' is \"Rome\", not a list"),
    "blank answers": ("a.json", asked([{"text": " ", "answer_start": 3}]), Questions, "none of its answers stands"),
    "lists of two lengths": ("a.json", asked({"text": ["Rome"], "answer_start": []}), Questions, "lists of one length"),
    "question a number": ("a.json", asked([], question=3), Questions, ":8, question x1: its 'question' is 3, not a text"),
    "half a pair, asked": ("a.json", asked([], question="\ud83d?"), Questions, ":8, question x1: 'question' has half a sur"),
    "half a pair, nameless": ("a.json", asked([], question="\ud83d?", id=None), Questions, "half a surrogate pair"),
    "half a pair, answered": ("a.json", asked(["\ud83d"]), Questions, ":8, question x1: 'answers' has half a surrogate"),
    "half a pair, read": ("a.json", asked([], "\ud83d"), Questions, ":8, question x1: 'context' has half a surrogate"),
    "impossible?": ("a.json", asked([], is_impossible="no"), Questions, "'is_impossible' is \"no\"; write true or false"),
    "no object asked": ("a.json", '{"data": [{"paragraphs": [\n{"context": "c", "qas": ["why"]}]}]}', Questions,
                        ":2, paragraph 1: 'qas' holds \"why\", which is no object"),
    "qas null": ("a.json", '{"data": [{"context": "c", "qas": null}]}', Questions, ":1, paragraph 1: 'qas' is null"),
    "no qas": ("a.json", '{"data": [{"context": "c"}]}', Questions, ":1, paragraph 1: no 'qas'"),
    "no context": ("a.json", '{"data": [{"qas": []}]}', Questions, "paragraph 1: its 'context' is null, not a text"),
    "an article of text": ("a.json", '["c"]', Questions, "'data' holds \"c\", which is no object"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_file_and_line(name, tmp_path):
    file, text, source, message = MISTAKES[name]
    path = write(tmp_path / file, text)
    with pytest.raises(UserError) as error:
        source(path=path).open()
    assert f"{path}{message}" in str(error.value) if message.startswith(":") else message in str(error.value)
    assert path in str(error.value)
    assert "\n" not in str(error.value)
    str(error.value).encode()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf8_have_a_line(mark, tmp_path):
    (tmp_path / "a.csv").write_bytes(mark + b"text,label\nfine,x\ncaf\xe9,y\n")
    with pytest.raises(UserError, match=rf"a\.csv:3: byte {len(mark) + 21} \(0xe9\) is not UTF-8; convert"):
        Labelled(path=str(tmp_path / "a.csv")).open()


def test_a_share_is_held_out_the_same_way_whatever_the_order(tmp_path):
    lines = [json.dumps({"text": f"text {i}", "label": i % 3}) for i in range(200)]
    found = [hold_out_share(Labelled(path=write(tmp_path / f"{k}.jsonl", "\n".join(order))).open(), 0.15)
             for k, order in enumerate((lines, lines[::-1]))]  # fmt: skip
    sides = [[{e.values["text"] for e in side} for side in one] for one in found]
    assert sides[0] == sides[1]
    assert len(sides[0][1]) == 30


def test_a_text_is_on_one_side_whatever_its_number_and_label(tmp_path):
    rows = [f"text {i % 60},{'ab'[i % 7 % 2]},{i},{i}" for i in range(120)]
    read = Labelled(path=write(tmp_path / "a.csv", "\n".join(["text,label,idx,question_id", *rows]))).open()
    train, held_out = hold_out_share(read, 0.2)
    assert not {e.values["text"] for e in train} & {e.values["text"] for e in held_out}
    assert len(held_out) == 24


def test_without_doubles_the_same_are_held_out_as_ever(tmp_path):
    """Runs that go on keep their split: this one is of the time before doubles were looked for."""
    lines = [json.dumps({"text": f"text {i}", "label": i % 3}) for i in range(40)]
    _, held_out = hold_out_share(Labelled(path=write(tmp_path / "a.jsonl", "\n".join(lines))).open(), 0.1)
    assert [e.values["text"] for e in held_out] == ["text 4", "text 12", "text 23", "text 26"]


def test_questions_of_one_paragraph_stay_together(tmp_path):
    many = {"data": [{"paragraphs": [
        {"context": f"Paragraph {i}.", "qas": [{"id": f"{i}-{k}", "question": f"{k}?", "answers": []} for k in range(5)]}
        for i in range(20)]}]}  # fmt: skip
    train, held_out = hold_out_share(Questions(path=write(tmp_path / "a.json", json.dumps(many))).open(), 0.2)
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
    assert examples_from("a.conllu", "marks") == Columns(path="a.conllu", word=1, tag=3)
    assert examples_from("a.txt", "marks") == examples_from("a.txt", "marks", data=None) == Columns(path="a.txt")
    assert examples_from("a.tsv", "marks") == Columns(path="a.tsv")
    for name in ("a.docx", "a.txt"):
        with pytest.raises(UserError, match=r"\.csv"):
            examples_from(name)


@pytest.mark.parametrize(
    ("text", "name", "split"),
    [
        ("tfds:glue/sst2", "glue/sst2", "train"),
        ("tfds:glue/sst2:validation", "glue/sst2", "validation"),
        ("tfds:glue/sst2:2.0.0", "glue/sst2:2.0.0", "train"),
        ("tfds:imdb_reviews:1.0.0:train[:80%]", "imdb_reviews:1.0.0", "train[:80%]"),
        ("tfds:imdb_reviews:train[10:20]+test", "imdb_reviews", "train[10:20]+test"),
    ],
)
def test_sets_of_tensorflow_datasets_by_name(text, name, split):
    assert examples_from(None, data=text) == TfdsExamples(name=name, split=split)


def test_what_names_no_set():
    assert examples_from(None, data="tfds:xnli", field="premise", language="ar").language == "ar"
    for wrong in ("sst2", "tfds:", "tfds::train", "hf:sst2", "tfds:a:"):
        with pytest.raises(UserError, match="write data=tfds:NAME"):
            examples_from(None, data=wrong)
    with pytest.raises(UserError, match="give one of them"):
        examples_from("a.csv", data="tfds:glue/sst2")


def test_the_documentation_has_answers_where_it_says():
    found = Documented(task="questions").open()
    for example in found:
        for text, start in zip(example.values["answers"], example.values["starts"], strict=True):
            assert example.values["context"][start:].startswith(text)
    assert len(found) > 1000
    assert 0 < sum(not e.values["answers"] for e in found) < len(found) / 2
    assert ExampleSet("x", list(found)).raw_bytes > 10**5
