"""From a user's text to a network's input before generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check


class Prompt(NamedTuple):
    """The tokens before the first new one (of an encoder-decoder: the decoder's), and the encoder's source."""

    tokens: np.ndarray  # int32 [T], T > 0
    source: np.ndarray | None = None  # int32 [S]


def encode(tokenizer: Tokenizer, text: str, template: bool) -> np.ndarray:
    """Encode a prompt; `template`: by the published tokenizer's template, with special tokens written in the text."""
    ids = tokenizer.encode(text, special=template, template=template)
    check(not text or len(ids) > 0, f"prompt {text!r} has no tokens in this run's tokenizer; give one with text in it")
    return ids


def continued(tokenizer: Tokenizer, text: str, template: bool = False) -> Prompt:
    """Make the prompt of a text to continue, as a document starts in training: after the separator.

    Without a separator (characters) the prompt is the text; the empty one is then a line end, or token 0 where the alphabet
    has none. `template`: see `encode`; the empty prompt is the separator then.
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

    Special tokens written in the text (sentinels, masks) are encoded as such: a source may contain them.
    """
    check(bool(text), "an empty prompt: this model writes an answer to a source, give it a text")
    ids = encode(tokenizer, text, True) if template else tokenizer.encode(text, special=True)
    source = ids if template else np.concatenate([begin, ids, end])
    return Prompt(np.array([start], np.int32), source.astype(np.int32))
