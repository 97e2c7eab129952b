"""Questions about paragraphs with answer spans: the JSON formats of SQuAD and CMRC."""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lm.data.files import Files, check_text, signature
from lm.data.types import Example, ExampleSource, Read
from lm.errors import UserError, check
from lm.strict_json import parse_json

REACH = 8  # characters by which a start may be wrong: counted in bytes, or before the text was cleaned
# A parsed JSON value has no line: ids and texts are looked for in the raw file.
NAMED = re.compile(r'"(?:id|query_id|question|query_text|context|context_text)"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')


@dataclass(frozen=True, kw_only=True)
class Questions(ExampleSource):
    """Questions about paragraphs: SQuAD's JSON (1.1, 2.0; DRCD) and CMRC's.

    Values: "id", "question", "context", "answers" (texts, none where the paragraph has no answer) and "starts", the
    character of the paragraph where each answer starts.
    """

    path: str

    def open(self) -> Read:
        files, examples = Files(self.path), []
        for path, text in files.texts():
            places = Places(path, text)
            for context, question in _questions(parse_json(text, path, (dict, list)), places):
                examples.append(_example(context, question, places))
        return Read(files.name, tuple(examples), signature(files.paths, "questions"))


class Places:
    """Line numbers of a file's paragraphs and questions, by their ids and texts."""

    def __init__(self, path: str, text: str):
        self.path = path
        self.lines: dict[Any, deque[int]] = defaultdict(deque)  # in the file's order, where an id or text repeats
        line, at = 1, 0
        for match in NAMED.finditer(text):
            line += text.count("\n", at, match.start())
            at = match.start()
            self.lines[parse_json(match[1], f"{path}:{line}")].append(line)

    def of(self, name: str, *values: Any) -> str:
        """Return FILE:LINE and name of a paragraph or question; of its ids and texts `values` the first in the file counts."""
        lines = [self.lines[value] for value in values if isinstance(value, str | int) and value in self.lines]
        return f"{self.path}{f':{lines[0].popleft()}' if lines and lines[0] else ''}, {printable(name)}"


def _questions(content: Any, places: Places) -> Iterator[tuple[str, dict]]:
    """Yield (paragraph, question); raises UserError for a file of another format."""
    articles = content.get("data") if isinstance(content, dict) else content
    right = isinstance(articles, list)
    check(right, f"{places.path}: neither SQuAD's format, {{'data': [...]}}, nor CMRC's, a list of paragraphs")
    number = 0
    for article in _objects(articles, "data", places.path):
        for paragraph in _objects(article.get("paragraphs", [article]), "paragraphs", places.path):
            number += 1
            context = paragraph.get("context", paragraph.get("context_text"))
            where = places.of(f"paragraph {number}", context)
            if not isinstance(context, str):
                raise UserError(f"{where}: its 'context' is {_short(context)}, not a text; mend or remove it")
            # Hugging Face has no paragraphs: each row has its question and context.
            check("qas" in paragraph or "question" in paragraph, f"{where}: no 'qas', the list of its questions; add it")
            for question in _objects(paragraph.get("qas", [paragraph]), "qas", where):
                yield context, question


def _objects(items: Any, name: str, where: str) -> list[dict]:
    if not isinstance(items, list):
        raise UserError(f"{where}: {name!r} is {_short(items)}, not a list of objects; mend it")
    for item in items:
        if not isinstance(item, dict):
            raise UserError(f"{where}: {name!r} holds {_short(item)}, which is no object; mend it")
    return items


def _short(value: Any) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 40 else f"{text[:40]}..."


def printable(text: str) -> str:
    """Escape halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()


def _example(context: str, question: dict, places: Places) -> Example:
    name = question.get("id", question.get("query_id"))
    asked = question.get("question", question.get("query_text"))
    where = places.of(f"question {_short(asked) if name is None else name}", name, asked)
    check(isinstance(asked, str), f"{where}: its 'question' is {_short(asked)}, not a text; mend or remove it")
    impossible = question.get("is_impossible") or False
    check(impossible in (True, False), f"{where}: its 'is_impossible' is {_short(impossible)}; write true or false")
    values: dict[str, Any] = {"id": "" if name is None else str(name), "question": asked, "context": context}
    for kind, text in values.items():
        check_text(text, where, kind)
    answers, starts = [], []
    given = _answers(question.get("answers") or [], where)
    for text, start in given:
        if not text.strip():
            continue
        place = _place(context, text, start)
        if start is not None and place < 0:
            other = context.find(text)
            raise UserError(
                f"{where}: the answer {text!r} is not at character {start} of the paragraph or within {REACH} of it, where "
                f"{context[start : start + len(text)]!r} stands; mend answer_start"
                + (f" (the text begins at {other})" if other >= 0 else ", or the text, which is nowhere in it")
            )
        if place >= 0:
            answers.append(text)
            starts.append(place)
    # Without a start, some of several answers may be worded otherwise than the paragraph.
    some = bool(impossible or answers or not given)
    check(some, f"{where}: none of its answers stands in the paragraph; mend them, or set is_impossible")
    values |= {"answers": [], "starts": []} if impossible else {"answers": answers, "starts": starts}
    return Example(values, where, context)


def _answers(given: Any, where: str) -> list[tuple[str, int | None]]:
    """List text and start of each answer; the start is None where the file has none."""
    if isinstance(given, dict):  # Hugging Face has a list of texts and a list of starts
        found, starts = given.get("text"), given.get("answer_start")
        if not isinstance(found, list) or not isinstance(starts, list) or len(found) != len(starts):
            raise UserError(f"{where}: 'answers' has no 'text' and 'answer_start' that are lists of one length; mend it")
        given = [{"text": text, "answer_start": start} for text, start in zip(found, starts)]
    if not isinstance(given, list):
        raise UserError(f"{where}: 'answers' is {_short(given)}, not a list; mend it")
    listed = []
    for one in given:
        one = {"text": one} if isinstance(one, str) else one
        if not (isinstance(one, dict) and isinstance(one.get("text"), str)):
            raise UserError(f"{where}: the answer {_short(one)} has no text; mend or remove it")
        text, start = one["text"], one.get("answer_start")
        right = "answer_start" not in one or (type(start) is int and start >= 0)
        check(right, f"{where}: the answer_start of {text!r} is {start!r}, not a number from 0; mend it")
        check_text(text, where, "answers")
        listed.append((text, start))
    return listed


def _place(context: str, text: str, start: int | None) -> int:
    """Return the occurrence of an answer nearest to its start and within REACH, -1 without one."""
    if start is None:
        return context.find(text)
    near = range(max(0, start - REACH), start + REACH + 1)
    return min((k for k in near if context.startswith(text, k)), key=lambda k: abs(k - start), default=-1)
