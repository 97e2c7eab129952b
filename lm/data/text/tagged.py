"""Corpora of words with tags: the format of the People's Daily of 1998 (Peking University)."""

from __future__ import annotations

import functools
import gzip
import lzma
import os
import re
import tarfile
import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lm.data.files import decode, expand, signature
from lm.data.packed import read_bytes
from lm.data.text.words import ENTITY, PHRASE, WORD
from lm.data.types import Piece, Reader, TextSource
from lm.errors import UserError, check_choices
from lm.sizes import check_memory

ENTITIES = ("nr", "ns", "nt", "nz")  # tags of people, places, organisations, other proper nouns
ARTICLE = re.compile(r"\d{8}-\d\d-\d{3}-\d{3}$")  # line numbers in the university's edition
UNIT = re.compile(r"(\[?)(.+)/([A-Za-z]+)(?:\](/?[A-Za-z]+))?$")


@dataclass(frozen=True, kw_only=True)
class Tagged(TextSource):
    """Words with tags, as in the People's Daily: `迈向/v 充满/v [中央/n 人民/n 广播/vn 电台/n]nt`.

    `path` may name a file in a tar archive: PATH.tar.gz::MEMBER. The text is the words without spaces; its marks
    (`lm.data.text.words`) are the starts of words, of bracketed phrases and of entities (nr, ns, nt, nz).
    `documents`: one document per line, per block between blank lines, or per file.
    """

    path: str
    documents: Literal["line", "blank", "file"] = "line"

    def __post_init__(self):
        check_choices(self)

    def open(self) -> Reader:
        return TaggedReader(self.path, self.documents)


class TaggedReader:
    """One line, one piece."""

    marked = True

    def __init__(self, path: str, documents: str):
        archive, _, member = path.partition("::")
        self.paths, self.member = expand(archive), member
        self.name = ",".join(os.path.basename(member or p) for p in self.paths[:3])
        self.documents = documents

    @functools.cached_property
    def lines(self) -> list[tuple[str, int, str]]:
        """(file, line number, line) of every line that is not blank; with documents="blank" of the blank ones too."""
        kept = []
        for path in self.paths:
            lines = [(path, k, line) for k, line in enumerate(self._read(path).splitlines(), 1)]
            kept += [*lines, (path, 0, "")] if self.documents == "blank" else [x for x in lines if x[2].strip()]
        return kept

    def _read(self, path: str) -> str:
        if not self.member:
            return decode(read_bytes(path), path).removeprefix("\ufeff")
        try:
            with tarfile.open(path) as archive:
                member = archive.extractfile(self.member)
                if member is None:
                    raise KeyError(self.member)
                size = archive.getmember(self.member).size  # a small archive may unpack to any size
                check_memory(4 * size, f"{path}::{self.member}", "unpack it and name the file, or cut it into parts")
                return decode(member.read(), f"{path}::{self.member}")
        except KeyError:
            raise UserError(f"{path} has no file {self.member!r}: see tar tf {path}") from None
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            reason = " ".join(str(error).split())[:80] or "it ends too early"
            raise UserError(f"{path} is no tar archive, or damaged ({reason}); fetch it again") from None

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> Piece:
        path, number, line = self.lines[i]
        units = parse_units(line, f"{path}:{number}")
        last = i + 1 == len(self.lines)
        match self.documents:
            case "line":
                end = True
            case "blank":
                end = last or not line.strip() or not self.lines[i + 1][2].strip()
            case _:
                end = last or self.lines[i + 1][0] != path
        text = "".join(unit.word for unit in units) + ("" if end else "\n")
        return Piece(text, end, (), functools.partial(_marks, len(text), units))

    def signature(self) -> str:
        return signature(self.paths, "tagged", self.member, self.documents)

    def inputs(self) -> list[str]:
        return self.paths


class Unit(NamedTuple):
    """A word and its tag in lower case (in an entity's brackets the entity's), and whether it starts a phrase, belongs to
    an entity, and is that entity's first word.
    """

    word: str
    tag: str
    phrase: bool
    entity: bool
    first: bool


def parse_units(line: str, where: str) -> list[Unit]:
    """Parse the words of a line; raises UserError with file and line for a token that is not WORD/TAG."""
    units: list[Unit] = []
    open_, surname = -1, False  # first word of the open bracket's group; whether the word before is a lone surname
    for k, token in enumerate(line.split()):
        match = UNIT.match(token)
        if match is None:
            raise UserError(f"{where}: {token!r} is not WORD/TAG; mend or remove it")
        bracket, word, tag, group = match.groups()
        if k == 0 and ARTICLE.match(word):
            continue
        if bracket and open_ < 0:
            open_ = len(units)
        entity = tag.lower() in ENTITIES
        # 江/nr 泽民/nr: the corpus cuts a Chinese name after the surname.
        given = entity and surname and tag == "nr"
        surname = tag == "nr" and len(word) <= 2 and not given
        units.append(Unit(word, tag.lower(), open_ < 0 or open_ == len(units), entity, not given))
        if group and open_ >= 0:
            kind = group.strip("/").lower()
            if kind in ENTITIES:
                inner = enumerate(units[open_:])
                units[open_:] = [unit._replace(tag=kind, entity=True, first=k == 0) for k, unit in inner]
            open_, surname = -1, False
    return units


def _marks(length: int, units: list[Unit]) -> np.ndarray:
    """Return the bits of each character, uint8 [length]; a line end behind the words is a word."""
    at = np.cumsum([0, *(len(unit.word) for unit in units)])
    marks = np.full(length, ENTITY, np.uint8)
    for start, stop, unit in zip(at[:-1].tolist(), at[1:].tolist(), units):
        if unit.entity:
            marks[start:stop] = 0
            marks[start] = ENTITY if unit.first else 0
        marks[start] |= WORD | (PHRASE if unit.phrase else 0)
    marks[at[-1] :] |= WORD | PHRASE
    return marks
