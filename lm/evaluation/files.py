"""Task files: JSON lines or tables, read as examples whose errors name FILE:LINE."""

from __future__ import annotations

from lm.data.labelled.files import Labelled
from lm.data.types import Example
from lm.errors import check


def read_examples(path: str) -> list[Example]:
    """Read JSON lines or tables (a path, a glob or a comma list); raises UserError for a malformed or empty file."""
    examples = list(Labelled(path=path).open().examples)
    check(bool(examples), f"{path} holds no examples: write one JSON object a line")
    return examples


def strings(example: Example, name: str) -> list[str]:
    """Return a field as a list of at least one string; a single string counts as a list of one."""
    value = example.get(name, (str, list))
    values = [value] if isinstance(value, str) else value
    right = bool(values) and all(isinstance(text, str) for text in values)
    check(right, f"{example.where}: {name!r} must be a list of strings, not {value!r}")
    return values
