"""Questions made out of running text: where answers stand, what is asked, and what is left alone."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lm.config import load
from lm.data.corpus.prepare import prepare
from lm.data.labelled import cloze
from lm.data.labelled.cloze import Cloze
from lm.errors import UserError

STORY = (
    "Anna Berg discovered a comet in Rome. It rained for weeks. The comet that Anna Berg discovered was named Lysandra. "
    "Nobody saw Lysandra again."
)
PLAIN = "It was a day. There was a man. He had a hat and it was so."


@pytest.fixture
def files(tmp_path):
    """Thirty documents, one of which tells something twice."""
    for k in range(30):
        (tmp_path / f"{k}.txt").write_text(STORY if k == 7 else PLAIN, encoding="utf-8")
    return str(tmp_path / "*.txt")


def test_an_answer_stands_where_it_says_and_not_in_its_question(files):
    found = Cloze(path=files).open()
    assert len(found) > 0
    for example in found:
        context, (answer,), (start,) = (example.values[name] for name in ("context", "answers", "starts"))
        assert context[start : start + len(answer)] == answer
        assert context.count(answer) == 1
        assert "what" in example.values["question"]
        assert answer not in example.values["question"]
        assert example.values["question"].replace("what", answer) not in context
        assert example.where == f"{example.group}, question 1" or example.where == f"{example.group}, question 2"


def test_the_longest_run_that_both_sentences_have_is_asked_for(files):
    found = {example.values["question"]: example.values["answers"][0] for example in Cloze(path=files, gap="who").open()}
    assert found == {
        "who a comet in Rome.": "Anna Berg discovered",
        "The comet that who was named Lysandra.": "Anna Berg discovered",
    }


def test_frequent_words_make_no_question(tmp_path):
    (tmp_path / "a.txt").write_text(PLAIN * 3)
    assert len(Cloze(path=str(tmp_path / "a.txt")).open()) == 0


def test_chinese_is_asked_by_characters(tmp_path):
    for k in range(30):
        text = "李雷在北京建设核电站。天下雨了。核电站由李雷和工人建设完成。" if k == 3 else "天下雨了。人来人往。"
        (tmp_path / f"{k}.txt").write_text(text, encoding="utf-8")
    found = Cloze(path=str(tmp_path / "*.txt"), gap="什么", limit=100).open()
    assert [(e.values["question"], e.values["answers"]) for e in found] == [
        ("什么在北京建设核电站。", ["李雷"]),  # what is left, 建设 and 核电站, tells most
        ("核电站由什么和工人建设完成。", ["李雷"]),
    ]


def test_stretches_overlap_and_hold_whole_sentences():
    sentences = [f"Sentence {k} ends. " for k in range(7)]
    assert cloze.split_sentences("".join(sentences)) == sentences
    seen = []
    original = cloze.paragraph_questions
    try:
        cloze.paragraph_questions = lambda part, rarity, gap: seen.append(part) or iter(())
        list(cloze.document_questions("".join(sentences), {}, 4 * len(sentences[0]), "what"))
    finally:
        cloze.paragraph_questions = original
    assert seen == [sentences[:4], sentences[2:6], sentences[4:]]


@pytest.mark.parametrize("text", ["", " \n\n ", "One sentence alone.", "🙂 e\u0301 🙂. 🙂 e\u0301 🙂."])
def test_text_that_gives_nothing_to_ask(tmp_path, text):
    (tmp_path / "a.txt").write_text(f"x{text}", encoding="utf-8")
    assert len(Cloze(path=str(tmp_path / "a.txt")).open()) == 0


def test_mistakes_are_told(files, tmp_path):
    with pytest.raises(UserError, match="gap"):
        Cloze(path=files, gap=" ")
    with pytest.raises(UserError, match="limit"):
        Cloze(path=files, limit=0)
    (tmp_path / "0.txt").write_text(PLAIN)
    with pytest.raises(UserError, match=r"cloze of 0\.txt has no example in it"):
        prepare(load(f"configs/extract_cloze.py:text={tmp_path / '0.txt'}").data, tmp_path / "cache")


def test_questions_do_not_depend_on_the_order_of_sets(tmp_path):
    """Sums of floats do; strings hash differently in every process, and a run must find its corpus again."""
    rng = np.random.default_rng(0)
    names = [f"word{k}" for k in range(300)]
    for k in range(60):
        own = rng.choice(names, 25)  # rare in the others
        sentences = [" ".join(rng.choice(own, 12)) + "." for _ in range(8)]
        (tmp_path / f"{k:02}.txt").write_text(" ".join(sentences))
    files = str(tmp_path / "*.txt")
    code = f"from lm.data.labelled.cloze import Cloze; print([e.values for e in Cloze(path={files!r}).open()])"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in "123"
    }
    assert len(found) == 1
    assert len(found.pop()) > 1000
