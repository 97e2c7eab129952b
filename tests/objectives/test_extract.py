"""Answers as spans: found in every tokenizer, in windows of long paragraphs, and turned into text again."""

import json
from pathlib import Path

import numpy as np
import pytest

from lm.data.corpus.corpus import Corpus
from lm.data.labelled.questions import Questions
from lm.data.rows.templates import Frame
from lm.data.types import Example, ExampleSet
from lm.errors import UserError
from lm.objectives.extract import Extract
from lm.objectives.finetune.network import Rows
from tests.data.test_framing import KINDS, TEXT
from tests.objectives.labelled import model, words

XQUAD = Path(__file__).parents[3] / "shared" / "data" / "xquad"


def ready(tokenizer=None, **fields) -> Extract:
    fields = {"model": model(vocab=60000, context=512), "rows": Rows(length=64), "stride": 20, "null": True, **fields}
    return Extract(**fields, frame=Frame(tokenizer or words(), "bert"))


def perfect(objective: Extract, example: Example) -> str:
    """The answer that scores of 9 at the right places give, through outcomes and merge."""
    parts = []
    for part, window in enumerate(objective.lay(example)):
        start, end = objective.target(example, window)
        scores = np.zeros((2, len(window.laid.tokens)))
        scores[0, start], scores[1, end] = 9, 9
        found = {"start": scores[0], "end": scores[1]}
        parts += objective.outcomes({"examples": [(example, part)]}, found)
    # A window without the answer says "none here", which speaks for itself alone.
    return objective.merge(example, parts)["candidates"][0]["text"]


@pytest.mark.parametrize("kind", KINDS)
def test_right_scores_give_the_answer_back(kind):
    """Every run of words of a text with emoji, Chinese and combining marks, whatever the tokens."""
    tokenizer = KINDS[kind]().with_special(("[PAD]", "[CLS]", "[SEP]"))
    objective = ready(tokenizer, rows=Rows(length=300), longest=200)
    parts = TEXT.split()
    for i in range(len(parts)):
        for j in range(i + 1, len(parts) + 1, 3):
            low = TEXT.index(parts[i])
            answer = TEXT[low : TEXT.index(parts[j - 1], low) + len(parts[j - 1])]
            values = {"question": parts[0], "context": TEXT, "answers": [answer], "starts": [low]}
            assert perfect(objective, Example(values, "x")).strip("\u200b") == answer.strip("\u200b")


def long(answer: str | None, start: int = 0) -> Example:
    context = " ".join(f"{name} {other}" for name in ("one", "two", "three", "four", "five") for other in ("six",) * 20)
    answers = {"answers": [], "starts": []} if answer is None else {"answers": [answer], "starts": [start]}
    return Example({"question": "ten nine", "context": context, **answers}, "x")


def test_windows_of_a_long_paragraph():
    objective, example = ready(), long(None)
    found = objective.lay(example)
    room = 64 - 2 - 3  # question and special tokens
    assert all(len(window.spans) == room for window in found[:-1])
    assert found[-1].spans[-1, 1] == len(example.values["context"])
    covered = np.sort(np.concatenate([window.spans[window.owned][:, 0] for window in found]))
    assert covered.tolist() == sorted({int(s) for window in found for s in window.spans[:, 0]})
    for k, window in enumerate(found[1:], 1):
        assert window.spans[0, 0] == found[k - 1].spans[20, 0]  # stride
    assert objective.target(example, found[0]) == (0, 0)


def test_an_answer_outside_of_a_window_is_the_special_token():
    text = "three six three"
    start = long(None).values["context"].index(text)
    objective, example = ready(), long(text, start)
    places = [objective.target(example, window) for window in objective.lay(example)]
    assert (0, 0) in places
    inside = [(window, place) for window, place in zip(objective.lay(example), places) if place != (0, 0)]
    assert len(inside) > 1
    for window, (low, high) in inside:
        assert high - low == 2
        assert window.spans[low - window.begin, 0] == start
    assert perfect(objective, example) == text


def test_a_packed_row_asks_at_each_windows_own_places():
    objective, example = ready(rows=Rows(length=64, row=128)), long("two", 0 + long(None).values["context"].index("two"))
    row = objective.corrupt(None, {"examples": [(example, 0), (example, 1)], "room": 3})
    assert row["numbers"].tolist() == [1, 2, 0]
    assert row["weights"].tolist() == [1, 1, 0]
    for k in range(2):
        own = np.flatnonzero(row["segments"] == k + 1)
        assert own[0] <= row["starts"][k] <= row["ends"][k] <= own[-1]


def test_types_may_tell_what_the_question_has_too():
    """Tokens of the paragraph alone, each window by itself; the tokens stay as they are."""
    values = {"question": "two nine", "context": "one two six nine two", "answers": [], "starts": []}
    example = Example(values, "x")
    (plain,), (window,) = ready().lay(example), ready(types="asked").lay(example)
    assert window.laid.tokens.tolist() == plain.laid.tokens.tolist()
    begin = window.begin
    assert plain.laid.types.tolist() == [0] * begin + [1] * 6
    assert window.laid.types.tolist() == [0] * begin + [0, 1, 0, 1, 1] + [0]
    objective, example = ready(types="asked"), long(None)
    asked = set(words().encode("ten nine").tolist())
    for window in objective.lay(example):
        inside = window.laid.tokens[window.begin :][: len(window.spans)]
        assert window.laid.types[window.begin :][: len(window.spans)].tolist() == [int(i in asked) for i in inside]
    with pytest.raises(UserError, match=r"needs objective\.model\.types=2"):
        ready(model=model(vocab=60000, context=512, types=0), types="asked")
    with pytest.raises(UserError, match="types"):
        ready(types="none")


def test_mistakes_name_the_question():
    objective = ready()
    with pytest.raises(UserError, match="x: 1 answers and 0 starts"):
        objective.gold(Example({"answers": ["a"], "starts": []}, "x"))
    with pytest.raises(UserError, match="no token for paragraphs"):
        ready(rows=Rows(length=4)).lay(long(None))


@pytest.mark.parametrize(("values", "message"), [
    ({"question": " "}, "x:2: 'question' is empty; mend or remove the example"),
    ({"context": ""}, "x:2: 'context' is empty"),
    ({"question": "\u200b"}, "x:2: the tokenizer leaves nothing of 'question'"),
    ({"context": "\u200b"}, "x:2: the tokenizer leaves nothing of 'context'"),
    ({"answers": [""], "starts": [0]}, "x:2: a text in 'answers' is empty"),
    ({"answers": ["one"], "starts": [-7]}, "x:2: the answer 'one' is not at character -7"),
])  # fmt: skip
@pytest.mark.parametrize("held", [False, True])
def test_texts_without_words_are_refused(values, message, held):
    plain = {"question": "ten", "context": "one two", "answers": [], "starts": []}
    good, odd = (Example({**plain, **more}, f"x:{k}") for k, more in ((1, {}), (2, values)))
    sides = [ExampleSet(name, [good, *[odd] * here]) for name, here in (("train", not held), ("held", held))]
    corpus = Corpus(words(), ((1.0, sides[0]),), sides[1], "x", 0, "", None)
    with pytest.raises(UserError, match=message):
        ready().study(corpus).records.open(sides[1])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_questions(language):
    """XQuAD: right scores give the official answer back for every question that one window holds."""
    path = XQUAD / f"xquad.{language}.json"
    if not path.exists():
        pytest.skip("no XQuAD here")
    from lm.data.tokenizer.tokenizer import WordPiece

    found = Questions(path=str(path)).open()
    assert len(found) == 1190
    texts = [example.values["context"] for example in found][::5]
    tokenizer = WordPiece(vocab=4000, lowercase=True).build(lambda: texts)
    objective = ready(tokenizer, rows=Rows(length=384), stride=128, longest=60)
    wrong = []
    for example in found.examples[::40]:
        answer = example.values["answers"][0]
        if perfect(objective, example) != answer:
            wrong.append((answer, perfect(objective, example)))
    # An answer that ends within a token comes back with the rest of the token.
    assert len(wrong) <= 1, wrong
    assert json.loads(path.read_text(encoding="utf-8"))["data"]
