"""Answers to new examples: equal to what a run says of its held-out ones, whatever labels stand there; every form of file."""

import csv
import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest

from lm.config import load
from lm.convert.runs import opened
from lm.data.labelled.columns import Columns, Entities
from lm.data.labelled.files import Labelled
from lm.data.types import Example
from lm.errors import UserError
from lm.evaluation.downstream import Found
from lm.evaluation.new_examples import answers_of, predict, read_examples, unlabelled, write_predictions
from lm.evaluation.predictions import TAGS
from lm.outputs import output_file
from tests.marks import quick
from tests.processes import command
from tests.test_runs import run

CONFIGS = Path(__file__).parent / "configs"
QUICK = "classify", "tag"
SPECS = {
    "classify": "reviews.csv",
    "tag": "sentences.conll",
    "extract": "questions.json",
    "choice": "options.jsonl",
    "rank": "alike.tsv",
    "text2text": "replies.jsonl",
}
NEEDS_LABEL = {"gold", "right", "error", "f1", "rule", "reference_logprob", "reference_bytes"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Give the run of a tiny config, trained once."""

    @cache
    def make(name: str) -> Path:
        workdir = tmp_path_factory.mktemp(name)
        done = run(f"--workdir={workdir}", config=f"tests/configs/tiny_{name}.py")
        assert done.returncode == 0, done.stderr
        return workdir

    return make


def answers(workdir: Path, path: Path | str, task: str | None = None) -> list[dict]:
    return unlabelled(predict(*opened(str(workdir), None), str(path), str(workdir), task))


def left(workdir: Path, name: str = "predictions.jsonl") -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text(encoding="utf-8").splitlines()]


def plain(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "where"} for row in rows]


def lines(path: Path, *objects) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), encoding="utf-8")
    return path


# -- the run's own answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick(SPECS, QUICK))
def test_held_out_examples_get_the_answers_that_the_run_left(name, trained):
    """Of the whole file, in its order; the held-out ones among them lie in other rows than they did."""
    workdir, path = trained(name), CONFIGS / SPECS[name]
    expected, found = left(workdir), answers(workdir, path)
    source = load(f"tests/configs/tiny_{name}.py").data.source
    assert [one["where"] for one in found] == [one.where for one in source.open()]
    by_place = {one["where"]: one for one in found}
    assert expected
    for one in expected:
        again = by_place[one["where"]]
        assert not NEEDS_LABEL & again.keys()
        for key in one.keys() - NEEDS_LABEL:
            numbers = key in ("confidence", "probabilities", "odds", "logprob") or isinstance(one[key], float)
            assert again[key] == (pytest.approx(one[key], abs=1e-5) if numbers else one[key]), key


@pytest.mark.parametrize("name", QUICK)
def test_a_file_of_the_held_out_examples_alone_gives_the_same_numbers(name, trained, tmp_path):
    """To the bit: labelled or not, and no example is left out or comes twice."""
    workdir, text = trained(name), (CONFIGS / SPECS[name]).read_text(encoding="utf-8").split("\n")
    expected, starts = left(workdir), [int(one["where"].rpartition(":")[2]) - 1 for one in left(workdir)]
    labelled, bare = tmp_path / SPECS[name], tmp_path / ("bare" + Path(SPECS[name]).suffix)
    if name == "classify":
        labelled.write_text("\n".join([text[0], *(text[k] for k in starts)]), encoding="utf-8")
        rows = list(csv.DictReader(labelled.open(encoding="utf-8", newline="")))
        bare = lines(bare.with_suffix(".jsonl"), *({"text": one["text"]} for one in rows))
    else:
        groups = [text[k : text.index("", k)] for k in starts]
        labelled.write_text("\n\n".join("\n".join(group) for group in groups), encoding="utf-8")
        bare.write_text("\n\n".join("\n".join(line.split()[0] for line in group) for group in groups), encoding="utf-8")
    found = []
    for path in (labelled, bare):
        done = command("lm.predict", f"--workdir={workdir}", f"--input={path}")
        assert done.returncode == 0, done.stderr
        found.append(plain([json.loads(line) for line in done.stdout.splitlines()]))
    assert found[0] == found[1]
    wanted = [{k: v for k, v in one.items() if k not in NEEDS_LABEL} for one in plain(expected)]
    assert [{k: v for k, v in one.items() if k not in ("entities", "text")} for one in found[0]] == wanted
    assert all(one.get("text") or one.get("words") for one in found[0])


def test_lines_of_text_are_answered_one_by_one(trained, tmp_path):
    workdir, path = trained("classify"), tmp_path / "new.txt"
    path.write_text("A film.\r\n\n  Dull, and long. \n", encoding="utf-8")
    one, two = answers(workdir, path)
    assert (one["where"], two["where"]) == (f"{path}:1", f"{path}:3")
    assert sum(one["probabilities"].values()) == pytest.approx(1)
    (alone,) = answers(workdir, lines(tmp_path / "one.jsonl", {"id": "x", "text": "A film.", "label": "unheard of"}))
    assert alone["id"] == "x"
    assert alone["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    output = tmp_path / "found.jsonl"
    done = command("lm.predict", f"--workdir={workdir}", f"--input={path}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}: the answers to 2 examples\n"
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(x["where"], x["guess"]) for x in again] == [(x["where"], x["guess"]) for x in (one, two)]
    for argument, words in (
        (f"--output={tmp_path / 'found.json'}", "SQuAD's form is of answers to questions; name it .jsonl"),
        ("--task=reviews", "this run has one task"),
        (f"--output={path}", "is the input itself"),
    ):
        refused = command("lm.predict", f"--workdir={workdir}", f"--input={path}", argument)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert words in refused.stderr
    assert not (tmp_path / "found.json").exists()
    assert path.read_text() == "A film.\n\n  Dull, and long. \n"


@pytest.mark.slow
def test_questions_give_squads_form_and_the_best_spans(trained, tmp_path):
    workdir, context = trained("extract"), "Anna was born in Oslo in 1970."
    asked = [{"id": name, "question": "Where was Anna born?"} for name in ("x", "y")]
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}))
    found = predict(*opened(str(workdir), None), str(path), "run")
    for one in unlabelled(found):
        offers = one["candidates"]
        assert [offer["score"] for offer in offers] == sorted((offer["score"] for offer in offers), reverse=True)
        assert all(context[offer["start"] :].startswith(offer["text"]) for offer in offers)
        assert one["start"] is None if one["guess"] == "" else context[one["start"] :].startswith(one["guess"])
    write_predictions(found, output_file(str(tmp_path / "a.json"), "lm.predict"))
    assert json.loads((tmp_path / "a.json").read_text()) == dict.fromkeys("xy", found.predictions[0]["guess"])
    twice = found._replace(predictions=found.predictions[:1] * 2)
    with pytest.raises(UserError, match="not every question has an id of its own"):
        write_predictions(twice, output_file(str(tmp_path / "b.json"), "lm.predict"))


@pytest.mark.slow
def test_bounds_that_a_run_chose_by_its_own_examples_are_no_bounds(trained, tmp_path):
    more = {"context": "a", "options": ["yes", "no", "maybe", "never " * 9]}
    (found,) = answers(trained("choice"), lines(tmp_path / "c.jsonl", more))
    assert len(found["probabilities"]) == 4
    texts = [{"source": f"{'word ' * k}"} for k in (1, 2, 3, 4, 30)]  # Reply.most is 3
    assert len(answers(trained("text2text"), lines(tmp_path / "t.jsonl", *texts))) == 5


@pytest.mark.slow
def test_one_task_of_several(trained, tmp_path):
    workdir = trained("tasks")
    found = {one["where"]: one for one in answers(workdir, CONFIGS / "sentences.conll", "tags")}
    expected = left(workdir, "predictions-tags.jsonl")
    assert [found[one["where"]]["guess"] for one in expected] == [one["guess"] for one in expected]
    for task, words in ((None, "--task=reviews or tags or answers"), ("tag", "did you mean 'tags'")):
        with pytest.raises(UserError, match=words):
            answers(workdir, CONFIGS / "sentences.conll", task)


# -- forms of files ----------------------------------------------------------------------------------------------------


def learned(name: str, **more):
    """Give a tiny config's objective as a run keeps it, without training, and its source."""
    config = load(f"tests/configs/tiny_{name}.py")
    return dataclasses.replace(config.objective, **more), config.data.source


TAGGER = {"labels": ("O", "B-PER")}
CHARACTERS = Entities(path="none.txt")


@pytest.mark.parametrize(
    ("file", "text", "own", "words"),
    [
        ("a.txt", "Anna lives .\n\nBonn\n", None, [["Anna", "lives", "."], ["Bonn"]]),
        ("a.txt", "安娜 来了\n", CHARACTERS, [["安", "娜", "来", "了"]]),
        ("a.txt", "安娜/nr 来/v 了/u\n", CHARACTERS, [["安", "娜", "来", "了"]]),
        ("a.txt", "Anna B-PER\nlives O\n\nBonn O\n", Columns(path="b.txt"), [["Anna", "lives"], ["Bonn"]]),
        ("a.txt", "Anna O\nlives O\n", Columns(path="b.conll"), [["Anna", "O"], ["lives", "O"]]),  # sentences, as said
        ("a.conll", "-DOCSTART-\n\nAnna\nlives\n\n\nBonn", None, [["Anna", "lives"], ["Bonn"]]),
        ("a.bio", "Anna NNP\nlives VBZ\n", None, [["Anna", "lives"]]),
        ("a.tsv", "1\tAnna\tX\n2\tlives\tO\n", Columns(path="none", word=1), [["Anna", "lives"]]),
        ("a.conllu", "# text = x\n1\tAnna\t_\t_\n", Labelled(path="none.jsonl"), [["Anna"]]),
        ("a.jsonl", '{"words": ["Anna", "lives"], "tags": ["odd"]}\n', None, [["Anna", "lives"]]),
    ],
)
def test_sentences_are_read_in_every_form(file, text, own, words, tmp_path):
    objective, source = learned("tag", **TAGGER)
    path = tmp_path / file
    path.write_text(text, encoding="utf-8")
    found = read_examples(str(path), objective, own or source)
    assert [one.values["words"] for one in found] == words
    assert [one.values["tags"] for one in found] == [["O"] * len(one) for one in words]  # whatever stood there
    assert all(one.values.get("spaced", True) == (own is not CHARACTERS) for one in found)


def test_tags_that_are_filled_in_break_no_rule():
    """A joint segmenter's first label never follows itself; forbidden steps are so when decoding all the same."""
    objective, _ = learned("tag", labels=("B-n", "E-n", "S-v"), crf=True, forbid="always", scheme="IOBES")
    assert objective.unbounded(None, ()).forbid == "decoding"


def test_a_sentence_ends_with_its_file(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.conll").write_text("Anna\nlives")
    objective, source = learned("tag", **TAGGER)
    found = read_examples(str(tmp_path / "*.conll"), objective, source)
    assert [one.values["words"] for one in found] == [["Anna", "lives"]] * 2


def test_tables_without_names_are_read_with_labels_and_without(tmp_path):
    objective, _ = learned("classify", labels=("bad", "good"))
    own, path = Labelled(path="none.tsv", columns=("label", "text"), quoted=False), tmp_path / "a.tsv"
    for text in ('odd\tA "film\n', 'A "film\n'):
        path.write_text(text)
        assert [one.values for one in read_examples(str(path), objective, own)] == [{"label": "bad", "text": 'A "film'}]


def test_a_label_that_stands_in_for_the_one_not_there_is_of_the_objectives_kind():
    for kind, value in (("one", "bad"), ("several", []), ("number", 0)):
        objective, _ = learned("classify", kind=kind, labels=("bad", "good") if kind != "number" else ())
        assert objective.placeholder(Example({}, "a:1")) == {"label": value}
    objective, _ = learned("text2text", target="{source} is {summary} {kind}")
    assert objective.placeholder(Example({}, "a:1")) == {"summary": ".", "kind": "."}


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("classify", "a.csv", "label,body\ngood,x\n", "a.csv:2: no 'text', which this classifier reads; it has 'label'"),
        ("classify", "a.csv", "text,label\nx\n", "a.csv:2: 1 fields where there are 2 columns; mend the line"),
        ("classify", "a.jsonl", '{"text": "a"}\n{"text"\n', "a.jsonl:2: no valid JSON"),
        ("classify", "a.jsonl", "", "no example in it; give at least one"),
        ("classify", "a.parquet", "x", "this classifier reads 'text': give a .csv, .tsv or .jsonl file, or one a line"),
        ("classify", "a.txt", b"x\n\xff", "a.txt:2: byte 2 (0xff) is not UTF-8"),
        ("rank", "a.txt", "x\n", "this ranker reads 'sentence1', 'sentence2': give a .csv, .tsv or .jsonl file"),
        ("tag", "a.csv", "words\nx\n", "this tagger reads 'words': give a .jsonl file, words in a .conll or .txt one"),
        ("tag", "a.conll", "a b\nc\n", "a.conll:2: 1 columns where the file has 2"),
        ("tag", "a.conll", "\n", "no example in it"),
        ("tag", "a.jsonl", '{"words": "Anna"}\n', "a.jsonl:1: 'words' is str, not list"),
        ("extract", "a.txt", "x\n", "or SQuAD's .json"),
        ("extract", "a.json", "{}", "neither SQuAD's form"),
    ],
)
def test_mistakes_are_one_line_with_a_way_out(name, file, text, said, tmp_path):
    objective, source = learned(name, **(TAGGER if name == "tag" else {"labels": ("a", "b")} if name == "classify" else {}))
    path = tmp_path / file
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_examples(str(path), objective, source)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


EXPECTED = {"classify": "classifier", "tag": "tagger", "extract": "reader", "choice": "chooser", "rank": "ranker",
            "text2text": "writer"}  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("tiny*.py")), ids=lambda path: path.stem)
def test_runs_of_running_text_are_sent_to_the_command_that_is_theirs(path):
    name, objective = path.stem.partition("_")[2], load(str(path)).objective.measured()
    if name in EXPECTED or name in ("tasks", "regularised"):
        objective = objective.parts[0].objective if name == "tasks" else objective
        assert answers_of(objective, "runs/x").kind == EXPECTED.get(name, "classifier")
        return
    with pytest.raises(UserError, match=r"'runs/x' learned from running text .* python -m lm.generate"):
        answers_of(objective, "runs/x")


def test_entities_are_spans_of_words():
    def found(labels, **values):
        objective = dataclasses.replace(learned("tag")[0], labels=labels)
        row = {"where": "a:1", "gold": ["O"] * 4, "guess": ["B-PER", "I-PER", "O", "B-LOC"], "right": 0.0, "words": [*"abcd"]}
        return unlabelled(Found(TAGS, objective, [row], [Example(values, "a:1")], [[]]))[0]

    people = [{"kind": "PER", "start": 0, "stop": 2, "text": "a b"}, {"kind": "LOC", "start": 3, "stop": 4, "text": "d"}]
    assert found(("O", "B-PER", "I-PER", "B-LOC"))["entities"] == people
    assert found(("O", "B-PER", "I-PER", "B-LOC"), spaced=False)["entities"][0]["text"] == "ab"
    assert found(("NOUN", "VERB")).keys() == {"where", "guess", "words"}  # tags that are no spans
