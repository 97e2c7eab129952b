"""The files of local tasks: JSON objects, one a line, or a table's rows, with their places for messages."""

from __future__ import annotations

from typing import Any, NamedTuple

from lm.data.labelled.files import read_labelled
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
    """Read JSON lines or a table (a path, a glob, a comma list); raises UserError naming file and line of what is broken."""
    found = [Item(example.where, dict(example.values)) for example in read_labelled(path, (), quoted=True).examples]
    check(bool(found), f"{path} holds no examples: give one JSON object a line")
    return found
