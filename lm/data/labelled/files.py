"""Labelled examples in tables (.csv, .tsv) and JSON lines."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lm.data.text.files import Files, signature
from lm.data.types import Example, Read, check_text
from lm.errors import UserError, check
from lm.strict_json import parse_json


def texts(path: str) -> tuple[Files, Iterator[tuple[str, str]]]:
    """Open files; give them and (path, text) of each."""
    files = Files(path)

    def each() -> Iterator[tuple[str, str]]:
        for one in files.paths:
            with open(one, "rb") as file:
                yield one, _decoded(file.read(), one)

    return files, each()


def _decoded(raw: bytes, path: str) -> str:
    """Decode UTF-8, with a byte-order mark or without; a byte that is none is a UserError with its line."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise UserError(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; convert the file first: iconv -f ENCODING -t UTF-8"
        ) from None


def read_labelled(path: str, columns: tuple[str, ...], quoted: bool) -> Read:
    """Read rows of tables and lines of JSON."""
    files, found = texts(path)
    examples: list[Example] = []
    for one, text in found:
        if one.lower().endswith((".csv", ".tsv", ".tab")):
            examples += _rows(one, text, columns, quoted)
        elif one.lower().endswith((".jsonl", ".ndjson", ".json")):
            examples += _lines(one, text)
        else:
            raise UserError(f"{one}: name it .csv, .tsv or .jsonl, so that its form is known")
    return Read(files.name, tuple(examples), signature(files.paths, "labelled", str(quoted), *columns))


def _rows(path: str, text: str, columns: tuple[str, ...], quoted: bool) -> list[Example]:
    csv.field_size_limit(sys.maxsize)
    tabs = path.lower().endswith((".tsv", ".tab"))
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
    names, found, line = list(columns), [], 1
    try:
        for row in rows:
            if row and not names:
                names = row
                check(len(set(names)) == len(names), f"{path}:1: two columns of one name: {', '.join(names)}")
            elif row:
                if len(row) != len(names):
                    raise UserError(f"{path}:{line}: {len(row)} fields where there are {len(names)} columns; mend the line")
                found.append(Example(dict(zip(names, row)), f"{path}:{line}"))
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: {error}; mend the quotes, or give quoted=False") from None
    return found


def _lines(path: str, text: str) -> list[Example]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        values = parse_json(line, where, dict)
        values = _tagged(located(values, where), where)
        for name, value in values.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    check_text(one, where, name)
        context = values.get("context") if "starts" in values else ""  # questions about one paragraph stay together
        found.append(Example(values, where, context if isinstance(context, str) else ""))
    return found


def located(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Give answers to a question as lists "answers" and "starts", where Hugging Face and TFDS nest them, too; check them."""
    answers = values.get("answers")
    if isinstance(answers, dict) and "answer_start" in answers:
        values = {**values, "answers": answers.get("text"), "starts": answers["answer_start"]}
    if "answers" in values and "starts" in values:
        for name, kind, what in (("answers", str, "texts"), ("starts", int, "the numbers of characters, from 0")):
            check(isinstance(values[name], list), f"{where}: {name!r} is {type(values[name]).__name__}, not a list of {what}")
            odd = [json.dumps(one) for one in values[name] if type(one) is not kind]
            check(not odd, f"{where}: {name!r} holds {', '.join(odd)}, and should hold {what}; mend it")
    return values


def _tagged(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Give words and their tags as texts: exports write tags as numbers, and the word 3 without quotes."""
    if not values.keys() & {"words", "tokens"}:
        return values
    names = [k for k, value in values.items() if re.fullmatch("words|tokens|(.+_)?tags", k) and isinstance(value, list)]
    for name in names:
        odd = [json.dumps(one) for one in values[name] if type(one) not in (str, int, float)]
        check(not odd, f"{where}: {name!r} holds {', '.join(odd)}, and should hold texts; mend it")
    return values | {name: [str(one) for one in values[name]] for name in names}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One example a row of .csv, .tsv and .tab files, a line of .jsonl files; every column is a value.

    `columns` names the columns of tables whose first row does not. `quoted=False` takes quotes as ordinary characters.
    """

    path: str
    columns: tuple[str, ...] = ()
    quoted: bool = True

    def open(self) -> Read:
        return read_labelled(self.path, tuple(self.columns), self.quoted)
