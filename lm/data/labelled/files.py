"""Labelled examples in tables (.csv, .tsv) and JSON lines."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from lm.data.files import Files, signature
from lm.data.types import Example, ExampleSource, Read
from lm.errors import check


@dataclass(frozen=True, kw_only=True)
class Labelled(ExampleSource):
    """One example a row of .csv, .tsv and .tab files or a line of .jsonl files; every column is a value.

    `columns` names the columns of tables without a row of names. With `quoted=False` quotes are ordinary characters.
    """

    path: str
    columns: tuple[str, ...] = ()
    quoted: bool = True

    def open(self) -> Read:
        files, columns = Files(self.path), tuple(self.columns)
        examples = tuple(_example(*record) for record in files.records(columns, self.quoted))
        return Read(files.name, examples, signature(files.paths, "labelled", str(self.quoted), *columns))


def _example(values: dict[str, Any], where: str) -> Example:
    if not values.keys() & {"answers", "starts", "words", "tokens"}:  # rows of plain tables come by the million
        return Example(values, where)
    values = _string_tags(with_answers(values, where), where)
    # The questions about one paragraph are held out together.
    context = values.get("context") if isinstance(values.get("starts"), list) else ""
    return Example(values, where, context if isinstance(context, str) else "")


def with_answers(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Move answers that Hugging Face and TFDS nest to the lists "answers" and "starts"; check both lists."""
    answers = values.get("answers")
    if isinstance(answers, dict) and "answer_start" in answers:
        values = {**values, "answers": answers.get("text"), "starts": answers["answer_start"]}
    pair = values.get("answers"), values.get("starts")
    # Two strings are two columns of a table, of whatever meaning.
    if "answers" in values and "starts" in values and not all(isinstance(value, str) for value in pair):
        for name, kind, items in (("answers", str, "texts"), ("starts", int, "the numbers of characters, from 0")):
            check(isinstance(values[name], list), f"{where}: {name!r} is {type(values[name]).__name__}, not a list of {items}")
            odd = [json.dumps(item) for item in values[name] if type(item) is not kind]
            check(not odd, f"{where}: {name!r} holds {', '.join(odd)}, and should hold {items}; mend it")
    return values


def _string_tags(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert words and their tags to strings: exports write tags as numbers, and the word 3 without quotes."""
    if not values.keys() & {"words", "tokens"}:
        return values
    names = [k for k, value in values.items() if re.fullmatch("words|tokens|(.+_)?tags", k) and isinstance(value, list)]
    for name in names:
        odd = [json.dumps(item) for item in values[name] if type(item) not in (str, int, float)]
        check(not odd, f"{where}: {name!r} holds {', '.join(odd)}, and should hold texts; mend it")
    return values | {name: [str(item) for item in values[name]] for name in names}
