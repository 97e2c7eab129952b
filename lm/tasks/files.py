"""The files of local tasks: JSON objects, one a line, with their places for messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm.data.files import decode, expand
from lm.errors import UserError, check


class Item(NamedTuple):
    """One object, and where it stands: "file.jsonl:12"."""

    where: str
    values: dict[str, Any]

    def text(self, name: str) -> str:
        """Give a field that must be a string."""
        found = self.get(name)
        check(isinstance(found, str), f"{self.where}: '{name}' must be a string, not {found!r}")
        return found

    def texts(self, name: str) -> list[str]:
        """Give a field that must be a list of strings; a string alone counts as one."""
        found = self.get(name)
        found = [found] if isinstance(found, str) else found
        right = isinstance(found, list) and found and all(isinstance(one, str) for one in found)
        check(right, f"{self.where}: '{name}' must be a list of strings, not {found!r}")
        return found

    def get(self, name: str) -> Any:
        if name not in self.values:
            raise UserError(f"{self.where} has no field '{name}'; it has {', '.join(self.values) or 'none'}")
        return self.values[name]


def items(path: str) -> list[Item]:
    """Read JSON lines (a path, a glob, a comma list); raises UserError naming file and line of what is broken."""
    found = [item for file in expand(path) for item in lines(Path(file))]
    check(bool(found), f"{path} holds no examples: give one JSON object a line")
    return found


def lines(path: Path) -> Iterator[Item]:
    text = decode(path.read_bytes(), str(path), 0).removeprefix("\ufeff")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: no JSON: {error}") from None
            check(isinstance(values, dict), f"{path}:{number}: an object is needed, like {{\"text\": ...}}")
            yield Item(f"{path}:{number}", values)
