"""Read corpora of words with tags, as the People's Daily of 1998 (Peking University) is given away."""

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

from lm.data.text.files import decode, expand, signature
from lm.data.text.words import ENTITY, PHRASE, WORD
from lm.data.types import Piece, Reader
from lm.errors import UserError
from lm.sizes import check_memory

ENTITIES = ("nr", "ns", "nt", "nz")  # tags of people, places, organisations, other proper nouns
ARTICLE = re.compile(r"\d{8}-\d\d-\d{3}-\d{3}$")  # what numbers the lines in the edition of the university
UNIT = re.compile(r"(\[?)(.+)/([A-Za-z]+)(?:\](/?[A-Za-z]+))?$")


class Unit(NamedTuple):
    """A word: whether a phrase begins with it, whether it belongs to an entity, whether it is that entity's first."""

    word: str
    phrase: bool
    entity: bool
    first: bool


class TaggedReader:
    """One line, one piece; words stand without spaces, their beginnings are the marks."""

    marked = True

    def __init__(self, path: str, documents: str):
        archive, _, member = path.partition("::")
        self.paths, self.member = expand(archive), member
        self.name = ",".join(os.path.basename(member or p) for p in self.paths[:3])
        self.documents = documents

    @functools.cached_property
    def lines(self) -> list[tuple[str, int, str]]:
        """(file, number, line) of every line that is not left out."""
        found = []
        for path in self.paths:
            lines = [(path, k, line) for k, line in enumerate(self._read(path).splitlines(), 1)]
            found += [*lines, (path, 0, "")] if self.documents == "blank" else [x for x in lines if x[2].strip()]
        return found

    def _read(self, path: str) -> str:
        if not self.member:
            with open(path, "rb") as file:
                return decode(file.read(), path, 0).removeprefix("\ufeff")
        try:
            with tarfile.open(path) as archive:
                file = archive.extractfile(self.member)
                if file is None:
                    raise KeyError(self.member)
                size = archive.getmember(self.member).size  # what a small archive may unpack to
                check_memory(4 * size, f"{path}::{self.member}", "unpack it and name the file, or cut it into parts")
                return decode(file.read(), f"{path}::{self.member}", 0)
        except KeyError:
            raise UserError(f"{path} has no file {self.member!r}: see tar tf {path}") from None
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            reason = " ".join(str(error).split())[:80] or "it ends too early"
            raise UserError(f"{path} is no tar archive, or damaged ({reason}); fetch it again") from None

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> Piece:
        path, number, line = self.lines[i]
        units = parse(line, f"{path}:{number}")
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


def parse(line: str, where: str) -> list[Unit]:
    """Read the words of a line; one that is not WORD/TAG is a UserError with file and line."""
    units: list[Unit] = []
    open_, surname = -1, False  # where the open bracket's group begins; whether the word before is a lone surname
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
        units.append(Unit(word, open_ < 0 or open_ == len(units), entity, not given))
        if group and open_ >= 0:
            if group.strip("/").lower() in ENTITIES:
                units[open_:] = [u._replace(entity=True, first=k == 0) for k, u in enumerate(units[open_:])]
            open_, surname = -1, False
    return units


def _marks(length: int, units: list[Unit]) -> np.ndarray:
    """Return the bits of each character, uint8 [length]; a line end after the words is a word."""
    at = np.cumsum([0, *(len(unit.word) for unit in units)])
    marks = np.full(length, ENTITY, np.uint8)
    for start, stop, unit in zip(at[:-1].tolist(), at[1:].tolist(), units):
        if unit.entity:
            marks[start:stop] = 0
            marks[start] = ENTITY if unit.first else 0
        marks[start] |= WORD | (PHRASE if unit.phrase else 0)
    marks[at[-1] :] |= WORD | PHRASE
    return marks


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """Words with tags, as in the People's Daily: `迈向/v 充满/v [中央/n 人民/n 广播/vn 电台/n]nt`.

    `path` may name a file in a tar archive: PATH.tar.gz::MEMBER. The text is the words without spaces; their
    beginnings, those of bracketed phrases and of entities (nr, ns, nt, nz) are its marks (`lm.data.text.words`).
    `documents`: each line is one, or each block between blank lines, or each file.
    """

    path: str
    documents: Literal["line", "blank", "file"] = "line"

    def __post_init__(self):
        if self.documents not in ("line", "blank", "file"):
            raise UserError(f"Tagged(documents={self.documents!r}): use 'line', 'blank' or 'file'")

    def open(self) -> Reader:
        return TaggedReader(self.path, self.documents)
