"""Words with tags, one a line (CoNLL, CoNLL-U), or characters out of tagged text (People's Daily)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lm.data.labelled.files import texts
from lm.data.text.files import signature
from lm.data.text.tagged import ARTICLE, UNIT, TaggedReader, parse
from lm.data.types import Example, Read
from lm.errors import check

SPACES = re.compile("[ \t]+")  # not all that Unicode calls white space: "10 000" with a narrow space is one word
# CoNLL-U counts a sentence's words from 1; 1-2 tells of words written together, 0.1 of one that was left out.
COUNTED = re.compile(r"1|1-(?!1\b)\d+|0\.1")
NO_WORD = re.compile(r"\d+[-.]\d+")
MEND_COLUMNS = "mend the line, or set separator, or comments if '# ' begins one"


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


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Sentences of tagged words as CoNLL writes them: one word a line, blank lines between; "words" and "tags".

    Columns are parted by tabs where the first line has one, else by spaces (`separator`: by that), and counted from 0, or
    from the end below 0. Left out are -DOCSTART-, lines that begin with "# " (with `comments`), and what CoNLL-U has beside
    words. `spaced=False`: no spaces between the words (Chinese).
    """

    path: str
    word: int = 0
    tag: int = -1
    separator: str = ""
    spaced: bool = True
    comments: bool = False

    def open(self) -> Read:
        return read_columns(self)


@dataclass(frozen=True, kw_only=True)
class Entities:
    """Named entities in words with tags (`lm.data.text.tagged.Tagged`), a character a word: "words" and "tags" in BIO.

    `kinds` pairs a tag of the corpus with the name of the entity.
    """

    path: str
    kinds: tuple[tuple[str, str], ...] = (("nr", "PER"), ("ns", "LOC"), ("nt", "ORG"))

    def open(self) -> Read:
        return read_entities(self.path, dict(self.kinds))
