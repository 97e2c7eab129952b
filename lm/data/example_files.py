"""Read files of labelled examples: tables, JSON lines, tagged words, TensorFlow Datasets."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm.data.examples import Columns, Example, Read, check_text
from lm.data.files import Files, decode, signature
from lm.data.tagged import ARTICLE, UNIT, TaggedReader, parse
from lm.errors import UserError, check


def texts(path: str) -> tuple[Files, Iterator[tuple[str, str]]]:
    """Open files; give them and (path, text) of each."""
    files = Files(path)

    def each() -> Iterator[tuple[str, str]]:
        for one in files.paths:
            with open(one, "rb") as file:
                yield one, decode(file.read(), one, 0).removeprefix("\ufeff")

    return files, each()


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
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); mend or remove the line") from None
        check(isinstance(values, dict), f"{where}: a {type(values).__name__}, not an object")
        for name, value in values.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    check_text(one, where, name)
        found.append(Example(values, where))
    return found


def read_columns(source: Columns) -> Read:
    """Read sentences of tagged words."""
    files, found = texts(source.path)
    examples: list[Example] = []
    for path, text in found:
        words: list[str] = []
        tags: list[str] = []
        first = 0
        for number, line in enumerate([*text.split("\n"), ""], 1):
            line = line.strip("\r")
            if line.startswith("-DOCSTART-") or (source.comments and line.startswith("# ")):
                continue
            if not line.strip():
                if words:
                    examples.append(Example({"words": words, "tags": tags, "spaced": source.spaced}, f"{path}:{first}"))
                words, tags = [], []
                continue
            first = first if words else number
            fields = line.split(source.separator or None)
            try:
                words.append(fields[source.word])
                tags.append(fields[source.tag])
            except IndexError:
                raise UserError(f"{path}:{number}: {len(fields)} columns in {line!r}; mend the line or set word, tag") from None
            check(len(fields) > 1, f"{path}:{number}: {line!r} has a word and no tag; mend the line or set separator")
            check(bool(words[-1].strip()), f"{path}:{number}: an empty word; mend the line")
    choices = str(source.word), str(source.tag), source.separator, str(source.spaced), str(source.comments)
    return Read(files.name, tuple(examples), signature(files.paths, "columns", *choices))


def read_entities(path: str, kinds: dict[str, str]) -> Read:
    """Read lines of WORD/TAG as characters with BIO tags."""
    reader = TaggedReader(path, "line")
    examples = []
    for file, number, line in reader.lines:
        where = f"{file}:{number}"
        found = _bio(line, where, kinds)
        if found[0]:
            examples.append(Example({"words": found[0], "tags": found[1], "spaced": False}, where))
    return Read(reader.name, tuple(examples), f"{reader.signature()}\nentities {sorted(kinds.items())}")


def _bio(line: str, where: str, kinds: dict[str, str]) -> tuple[list[str], list[str]]:
    units = parse(line, where)
    names = _kinds(line)
    characters: list[str] = []
    tags: list[str] = []
    for unit, tag in zip(units, names):
        kind = kinds.get(tag) if unit.entity else None
        first = unit.first
        for character in unit.word:
            characters.append(character)
            tags.append("O" if kind is None else f"{'B' if first else 'I'}-{kind}")
            first = False
    return characters, tags


def _kinds(line: str) -> list[str]:
    """Give the tag of each word, or that of the entity in brackets around it."""
    found: list[str] = []
    open_ = -1
    for k, token in enumerate(line.split()):
        bracket, word, tag, group = UNIT.match(token).groups()
        if k == 0 and ARTICLE.match(word):
            continue
        if bracket and open_ < 0:
            open_ = len(found)
        found.append(tag.lower())
        if group and open_ >= 0:
            group = group.strip("/").lower()
            if re.fullmatch("n[rstz]", group):
                found[open_:] = [group] * (len(found) - open_)
            open_ = -1
    return found


def read_tfds(name: str, split: str, field: str, data_dir: str | None) -> Read:
    """Read records of a TensorFlow Datasets split."""
    from lm.data.published import TfdsReader

    reader = TfdsReader(name, split, field, data_dir)
    features = reader.records.dataset_info.features
    examples = []
    for i in range(len(reader)):
        values = {key: _plain(value, features[key]) for key, value in reader.records[i].items()}
        answers = values.get("answers")
        if isinstance(answers, dict) and "answer_start" in answers:
            values |= {"answers": answers["text"], "starts": answers["answer_start"]}
        examples.append(Example(values, f"{reader.name} {split}, record {i}", str(values.get("context", ""))))
    return Read(reader.name, tuple(examples), reader.signature())


def _plain(value: Any, feature: Any) -> Any:
    """Turn what TFDS gives into texts, numbers and lists; numbers of classes into names."""
    if isinstance(value, dict):
        inner = getattr(feature, "feature", feature)
        return {key: _plain(one, inner[key]) for key, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(one, getattr(feature, "feature", feature)) for one in value]
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    names = getattr(feature, "names", None)
    if names is None or not isinstance(value, int):
        return value
    return names[value] if value >= 0 else ""
