"""Read questions about paragraphs: SQuAD's JSON and what is written like it, and CMRC's own form."""

from __future__ import annotations

import json
from typing import Any

from lm.data.example_files import texts
from lm.data.examples import Example, Read
from lm.data.files import signature
from lm.errors import UserError, check


def read_questions(path: str) -> Read:
    """Read every question of the files; an answer that does not stand where its file says is a UserError."""
    files, found = texts(path)
    examples = []
    for one, text in found:
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{one}:{error.lineno}: not JSON ({error.msg}); for one object a line take Labelled") from None
        for context, question in _questions(content, one):
            examples.append(_example(context, question, one))
    return Read(files.name, tuple(examples), signature(files.paths, "questions"))


def _questions(content: Any, path: str) -> list[tuple[str, dict]]:
    """List (paragraph, question); raises UserError where the file is of another form."""
    articles = content.get("data") if isinstance(content, dict) else content
    check(isinstance(articles, list), f"{path}: neither SQuAD's form, {{'data': [...]}}, nor CMRC's, a list of paragraphs")
    try:
        paragraphs = [p for article in articles for p in article.get("paragraphs", [article])]
        return [(p["context"] if "context" in p else p["context_text"], qa) for p in paragraphs for qa in p["qas"]]
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: a paragraph without {error}: it needs 'context' and 'qas'") from None


def _example(context: str, question: dict, path: str) -> Example:
    name = str(question.get("id", question.get("query_id", "")))
    where = f"{path}, question {name}"
    asked = question.get("question", question.get("query_text"))
    check(isinstance(asked, str) and isinstance(context, str), f"{where}: its question or paragraph is no text")
    answers, starts = [], []
    for answer in question.get("answers") or []:
        text = answer if isinstance(answer, str) else answer.get("text", "")
        start = context.find(text) if isinstance(answer, str) else answer.get("answer_start", context.find(text))
        if not text.strip():
            continue
        if context[start : start + len(text)] != text:
            near = context.find(text, max(0, start - 8))  # counted in bytes, or before the text was cleaned
            check(
                isinstance(answer, str) or near >= 0,
                f"{where}: the answer {text!r} is not at character {start} of the paragraph; mend answer_start",
            )
            start = near
        if start >= 0:
            answers.append(text)
            starts.append(start)
    impossible = bool(question.get("is_impossible", False))
    check(
        impossible or bool(answers) or not question.get("answers"),
        f"{where}: none of its answers stands in the paragraph; mend them, or set is_impossible",
    )
    values = {"id": name, "question": asked, "context": context}
    none: list = []
    values |= {"answers": none, "starts": none} if impossible else {"answers": answers, "starts": starts}
    return Example(values, where, context)
