"""Words with tags, one a line (CoNLL, CoNLL-U), or characters of tagged text (People's Daily)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lm.data.files import Files, signature
from lm.data.text.tagged import TaggedReader, parse_units
from lm.data.types import Example, ExampleSource, Read
from lm.errors import check

SPACES = re.compile("[ \t]+")  # not all Unicode white space: "10 000" with a narrow space is one word
# CoNLL-U counts a sentence's words from 1; 1-2 are words written together, 0.1 is a word left out.
COUNTED = re.compile(r"1|1-(?!1\b)\d+|0\.1")
NO_WORD = re.compile(r"\d+[-.]\d+")
MEND_COLUMNS = "mend the line, or set separator, or comments if '# ' begins one"


@dataclass(frozen=True, kw_only=True)
class Columns(ExampleSource):
    """Sentences of tagged words in CoNLL's format, one word a line, blank lines between; "words" and "tags".

    Columns are separated by `separator`; without one by tabs where the first line has a tab, else by spaces. They are
    counted from 0, or from the end below 0. Left out are -DOCSTART-, lines that begin with "# " (with `comments`), and the
    lines of CoNLL-U that are no word. `spaced=False`: no spaces between the words (Chinese).
    """

    path: str
    word: int = 0  # column of the word
    tag: int = -1  # column of its tag
    separator: str = ""
    spaced: bool = True
    comments: bool = False

    def open(self) -> Read:
        files = Files(self.path)
        examples = [example for path, text in files.texts() for example in _sentences(path, text, self)]
        choices = str(self.word), str(self.tag), self.separator, str(self.spaced), str(self.comments)
        return Read(files.name, tuple(examples), signature(files.paths, "columns", *choices))


def _sentences(path: str, text: str, source: Columns) -> Iterator[Example]:
    words: list[str] = []
    tags: list[str] = []
    first = 0
    for number, fields in _rows(path, text, source):
        if fields:
            first = first if words else number
            words.append(fields[source.word])
            tags.append(fields[source.tag])
            check(bool(words[-1] and tags[-1]), f"{path}:{number}: an empty word or tag; mend the line")
        elif words:
            yield Example({"words": words, "tags": tags, "spaced": source.spaced}, f"{path}:{first}")
            words, tags = [], []


def _rows(path: str, text: str, source: Columns) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, columns), [] for a blank line and behind the last; all lines have as many as the first."""
    lines = [line.rstrip("\r") for line in [*text.split("\n"), ""]]
    # The first line that is no comment decides the separator, and whether the file is CoNLL-U.
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


@dataclass(frozen=True, kw_only=True)
class Entities(ExampleSource):
    """Named entities in words with tags (`lm.data.text.tagged.Tagged`), a character a word: "words" and "tags" in BIO.

    `kinds` pairs a tag of the corpus with the name of the entity.
    """

    path: str
    kinds: tuple[tuple[str, str], ...] = (("nr", "PER"), ("ns", "LOC"), ("nt", "ORG"))

    def open(self) -> Read:
        reader, kinds = TaggedReader(self.path, "line"), dict(self.kinds)
        examples = []
        for file, number, line in reader.lines:
            where = f"{file}:{number}"
            characters, tags = _bio(line, where, kinds)
            if characters:
                examples.append(Example({"words": characters, "tags": tags, "spaced": False}, where))
        return Read(reader.name, tuple(examples), f"{reader.signature()}\nentities {sorted(kinds.items())}")


def _bio(line: str, where: str, kinds: dict[str, str]) -> tuple[list[str], list[str]]:
    characters: list[str] = []
    tags: list[str] = []
    for unit in parse_units(line, where):
        kind = kinds.get(unit.tag) if unit.entity else None
        first = unit.first
        for character in unit.word:
            characters.append(character)
            tags.append("O" if kind is None else f"{'B' if first else 'I'}-{kind}")
            first = False
    return characters, tags
