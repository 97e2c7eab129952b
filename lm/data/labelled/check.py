"""Checked access to the texts, numbers and labels of examples; every UserError starts with the example's FILE:LINE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm.data.rows.templates import Frame
from lm.data.types import Example
from lm.errors import check

LARGEST = float(np.finfo(np.float32).max)


def refuse_empty(text: str, where: str, what: str) -> None:
    """Refuse a blank text: a decoder would predict its label from a neighbour in the row."""
    check(bool(text.strip()), f"{where}: {what} is empty; mend or remove the example")


def refuse_empties(examples: Sequence[Example], *names: str) -> None:
    """Refuse examples in which one of these texts is missing or empty."""
    for example in examples:
        for name in names:
            refuse_empty(example.get(name), example.where, repr(name))


def check_tokens(count: int, text: str, where: str, what: str) -> None:
    """Refuse a text without tokens (zero-width characters).

    Blank texts pass: `refuse_empty` keeps them from training, and an explanation removes the words of a text one by one.
    """
    encodable = count > 0 or not text.strip()
    check(encodable, f"{where}: the tokenizer leaves nothing of {what}, {text!r}; mend or remove the example")


def encoded(frame: Frame, example: Example, name: str) -> np.ndarray:
    """Encode a text of an example, int32 [T]."""
    text = example.get(name)
    ids = frame.encode(text)
    check_tokens(len(ids), text, example.where, repr(name))
    return ids


def items_of(example: Example, name: str) -> list[str]:
    """Return a list of texts or numbers, or a single one, as a list of texts."""
    value = example.get(name, (str, int, float, list))
    items = value if isinstance(value, list) else [value]
    for item in items:
        check(isinstance(item, str | int | float), f"{example.where}: {name!r} has {item!r} in its list, not a text; mend it")
    return [str(item) for item in items]


def number_of(example: Example, name: str) -> float:
    """Return a finite float32: one infinite target would make the mean over all examples infinite."""
    value = example.get(name, (str, int, float))
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = float("nan")
    check(abs(number) <= LARGEST, f"{example.where}: {name!r} is {value!r}, not a number to learn; mend it")
    return number


def refuse_doubles(labels: Sequence[str]) -> None:
    """Refuse a label listed twice in a config: the second one's score would never be trained."""
    twice = next((name for name in labels if labels.count(name) > 1), None)
    check(twice is None, f"labels={tuple(labels)}: {twice!r} is listed twice; leave one out")
