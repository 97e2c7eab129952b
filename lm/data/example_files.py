"""Read files of labelled examples: tables, JSON lines, tagged words, TensorFlow Datasets."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lm.data.examples import Columns, Example, Read, TfdsExamples, check_text
from lm.data.files import Files, signature
from lm.data.tagged import ARTICLE, UNIT, TaggedReader, parse
from lm.errors import UserError, check
from lm.strict_json import parse_json

SPACES = re.compile("[ \t]+")  # not all that Unicode calls white space: "10 000" with a narrow space is one word
# CoNLL-U counts a sentence's words from 1; 1-2 tells of words written together, 0.1 of one that was left out.
COUNTED = re.compile(r"1|1-(?!1\b)\d+|0\.1")
NO_WORD = re.compile(r"\d+[-.]\d+")
MEND_COLUMNS = "mend the line, or set separator, or comments if '# ' begins one"


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


def read_columns(source: Columns) -> Read:
    """Read sentences of tagged words."""
    files, found = texts(source.path)
    examples = [example for path, text in found for example in _sentences(path, text, source)]
    choices = str(source.word), str(source.tag), source.separator, str(source.spaced), str(source.comments)
    return Read(files.name, tuple(examples), signature(files.paths, "columns", *choices))


def _sentences(path: str, text: str, source: Columns) -> Iterator[Example]:
    words: list[str] = []
    tags: list[str] = []
    first = 0
    for number, fields in _columns(path, text, source):
        if fields:
            first = first if words else number
            words.append(fields[source.word])
            tags.append(fields[source.tag])
            check(bool(words[-1] and tags[-1]), f"{path}:{number}: an empty word or tag; mend the line")
        elif words:
            yield Example({"words": words, "tags": tags, "spaced": source.spaced}, f"{path}:{first}")
            words, tags = [], []


def _columns(path: str, text: str, source: Columns) -> Iterator[tuple[int, list[str]]]:
    """Give number and columns of each line, none of a blank one and behind the last; all lines have as many as the first."""
    lines = [line.rstrip("\r") for line in [*text.split("\n"), ""]]
    top = next((line for line in lines if line.strip() and not line.startswith(("-DOCSTART-", "#"))), "")
    separator = source.separator or "\t" * ("\t" in top)
    universal = bool(source.word) and separator == "\t" and bool(COUNTED.fullmatch(top.split("\t")[0]))
    skipped = ("-DOCSTART-", *["#"] * universal, *["# "] * source.comments)
    width = start = 0
    for number, line in enumerate(lines, 1):
        if line.startswith(skipped):
            continue
        if not line.strip(" \t"):
            yield number, []
            continue
        fields = line.split(separator) if separator else SPACES.split(line.strip(" \t"))
        if not width:
            width, start = len(fields), number
            check(width > 1 or source.tag == source.word, f"{path}:{number}: {line!r} has a word and no tag; {MEND_COLUMNS}")
            there = all(-width <= column < width for column in (source.word, source.tag))
            check(there, f"{path}:{number}: {width} columns in {line!r}; set word and tag to two of them, counted from 0")
        check(
            len(fields) == width,
            f"{path}:{number}: {len(fields)} columns where the file has {width} (line {start}); {MEND_COLUMNS}",
        )
        if not (universal and NO_WORD.fullmatch(fields[0])):
            yield number, [field.strip(" \t") for field in fields]


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


def read_tfds(source: TfdsExamples) -> Read:
    """Read records of a TensorFlow Datasets split."""
    import tensorflow_datasets as tfds

    from lm.data.published import TfdsReader

    reader = TfdsReader(source.name, source.split, source.field, source.data_dir)
    features = reader.records.dataset_info.features
    kinds = tfds.features.Translation, tfds.features.TranslationVariableLanguages
    several = [name for name in sorted(features) if isinstance(features[name], kinds)]
    check(bool(several) or not source.language, f"{reader.name}: no text in several languages; leave out language")
    examples = []
    for i in range(len(reader)):
        where = f"{reader.name} {source.split}, record {i}"
        record = reader.records[i]
        values = {key: _plain(record[key], features[key]) for key in sorted(record)}  # TFDS has them in no order
        values |= {name: _spoken(values[name], source.language, f"{where}: {name!r}") for name in several}
        examples.append(Example(located(values, where), where, str(values.get("context", ""))))
    return Read(reader.name, tuple(examples), f"{reader.signature()} {source.language}".rstrip())


def _spoken(texts: Mapping[str, Any], language: str, where: str) -> str:
    """Pick one language of what TFDS holds by language, or (where records have them or not) as two lists."""
    if "translation" in texts:
        texts = dict(zip(texts["language"][::-1], texts["translation"][::-1]))  # of several the first
    says = f"has no {language!r}" if language else "is in several languages"
    check(language in texts, f"{where} {says}; set language to one of {', '.join(sorted(texts))}")
    return texts[language]


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
