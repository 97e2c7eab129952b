"""From a user's text to what a network reads before it writes: numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check


class Prompt(NamedTuple):
    """What a network (of an encoder-decoder: its decoder) reads before the first new token, and the encoder's source."""

    tokens: np.ndarray  # int32 [T], T > 0
    source: np.ndarray | None = None  # int32 [S]


def encode(tokenizer: Tokenizer, text: str, template: bool) -> np.ndarray:
    """Encode a prompt; `template` as the published tokenizer's own files say, special tokens in the text included."""
    ids = tokenizer.encode(text, special=template, template=template)
    check(not text or len(ids) > 0, f"prompt {text!r} has no tokens in this run's tokenizer; give one with text in it")
    return ids


def continued(tokenizer: Tokenizer, text: str, template: bool = False) -> Prompt:
    """Make the prompt of a text to go on with, as training saw the beginning of a document: after the separator.

    Without a separator (characters) a text just begins; the empty one then begins after a line's end, or after token 0
    where the alphabet has none. `template`: see `encode`; the empty prompt is the separator then.
    """
    ids = encode(tokenizer, text, template)
    if tokenizer.separator is not None and not (template and len(ids)):
        return Prompt(np.concatenate([[tokenizer.separator], ids]).astype(np.int32))
    if len(ids):
        return Prompt(ids)
    line_end = tokenizer.token_id("\n")
    return Prompt(np.array([0 if line_end is None else line_end], np.int32))


def answered(
    tokenizer: Tokenizer,
    text: str,
    *,
    start: int,
    begin: Sequence[int] = (),
    end: Sequence[int] = (),
    template: bool = False,
) -> Prompt:
    """Make the prompt of a source to answer: the encoder reads begin + text + end, the decoder first `start`.

    Special tokens written in the text (sentinels, masks) are meant as such: a source is where they belong.
    """
    check(bool(text), "an empty prompt: this model writes an answer to a source, give it a text")
    ids = encode(tokenizer, text, True) if template else tokenizer.encode(text, special=True)
    source = ids if template else np.concatenate([begin, ids, end])
    return Prompt(np.array([start], np.int32), source.astype(np.int32))
