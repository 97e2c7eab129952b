"""What objectives take of labelled examples: texts and numbers that can be learned from; numpy only.

Everything raises UserError, one line that begins with the example's FILE:LINE.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm.data.rows.templates import Frame
from lm.data.types import Example
from lm.errors import check

LARGEST = float(np.finfo(np.float32).max)


def refuse_empty(text: str, where: str, what: str) -> None:
    """Refuse a text of nothing but white space: a decoder would read its label off a neighbour in the row."""
    check(bool(text.strip()), f"{where}: {what} is empty; mend or remove the example")


def refuse_empties(examples: Sequence[Example], *names: str) -> None:
    """Refuse examples in which one of these texts is missing or empty."""
    for example in examples:
        for name in names:
            refuse_empty(example.get(name), example.where, repr(name))


def check_tokens(count: int, text: str, where: str, what: str) -> None:
    """Refuse a text of which the tokenizer leaves nothing (zero-width characters).

    Empty ones, which `refuse_empty` keeps from training, pass: what a network is asked later may be a text whose words
    are taken out one by one.
    """
    left = count > 0 or not text.strip()
    check(left, f"{where}: the tokenizer leaves nothing of {what}, {text!r}; mend or remove the example")


def encoded(frame: Frame, example: Example, name: str) -> np.ndarray:
    """Give the ids of a text of an example, int32 [T]."""
    text = example.get(name)
    ids = frame.encode(text)
    check_tokens(len(ids), text, example.where, repr(name))
    return ids


def items_of(example: Example, name: str) -> list[str]:
    """Give a list of texts or numbers as texts, one value as a list of one."""
    value = example.get(name, (str, int, float, list))
    items = value if isinstance(value, list) else [value]
    for one in items:
        check(isinstance(one, str | int | float), f"{example.where}: {name!r} has {one!r} in its list, not a text; mend it")
    return [str(one) for one in items]


def number_of(example: Example, name: str) -> float:
    """Give a number that float32 holds: one that is not finite would make the mean over all examples so."""
    value = example.get(name, (str, int, float))
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = float("nan")
    check(abs(number) <= LARGEST, f"{example.where}: {name!r} is {value!r}, not a number to learn; mend it")
    return number


def refuse_doubles(labels: Sequence[str]) -> None:
    """Refuse a label that a config lists twice: the second one's score would never be asked for."""
    twice = next((name for name in labels if labels.count(name) > 1), None)
    check(twice is None, f"labels={tuple(labels)}: {twice!r} is listed twice; leave one out")
