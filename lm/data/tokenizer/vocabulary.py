"""Tables of a vocabulary by id: special tokens, ends of sentences, starts of words."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import numpy as np

from lm.data.tokenizer.builders import is_ideograph
from lm.data.tokenizer.special import special_ids

SPACE, LETTER, OWN, INNER = 0, 1, 2, 3  # kinds of characters; OWN: a word by itself; INNER: inside a character's bytes
ENDS = ".!?。！？…\n"
CLOSING = "\"'”’」』）》)]}"


class Pieces:
    """`special` bool [V]; `ends_sentence` bool [V]: the piece's text ends with one of . ! ? 。！？… or a line end,
    closing quotes and brackets after it not counted; `word_starts` marks the starts of words.

    A token starts a word when it starts with a space and more, with punctuation, a symbol, an ideograph or kana, when it
    is special or follows a special token, or when letters (digits count as letters) follow anything else. Spaces alone are
    a word. In WordPiece vocabularies every token without ## starts a word.
    Bytes that are no whole character are judged by the first byte's script (ideographs, Latin, ...).
    """

    def __init__(self, core: Any, vocab: int, byte_level: dict[str, int] | None):
        self.special = np.zeros(vocab, bool)
        self.special[special_ids(core)] = True
        self.ends_sentence = np.zeros(vocab, bool)
        self._always = self.special.copy()
        self._first = np.zeros(vocab, np.int8)
        self._last = np.zeros(vocab, np.int8)
        model = _model(core)
        prefix = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
        suffix = model.get("end_of_word_suffix")
        # One pass over the vocabulary: rows of ids are only looked up afterwards, never decoded.
        for name, i in core.get_vocab(with_added_tokens=True).items():
            if self.special[i]:
                self._last[i] = OWN
            elif prefix:
                self._always[i] = not name.startswith(prefix)
                self.ends_sentence[i] = _ends(name)
            else:
                text = _text(name, byte_level, suffix)
                self.ends_sentence[i] = _ends(text) if isinstance(text, str) else False
                self._always[i], self._first[i], self._last[i] = _kinds(text)
        self._partial = bool((self._last == INNER).any())

    def word_starts(self, tokens: np.ndarray) -> np.ndarray:
        """Mark the tokens of a row, int [T], that start a word: bool [T]; the row's first token does."""
        last = self._last[tokens]
        if self._partial and (inner := last == INNER).any():
            # The last byte of a character has the kind of its first.
            at = np.maximum.accumulate(np.where(inner, 0, np.arange(len(last))))
            last = last[at]
        starts = self._always[tokens]
        first = self._first[tokens[1:]]
        starts[1:] |= (first != last[:-1]) & (first != INNER)
        starts[:1] = True
        return starts


def _model(core: Any) -> dict:
    return json.loads(core.to_str())["model"]


def _text(name: str, byte_level: dict[str, int] | None, suffix: str | None) -> str | bytes:
    """Return a piece as text, as bytes where it is no whole number of characters."""
    raw = None
    if byte_level and all(symbol in byte_level for symbol in name):
        raw = bytes(byte_level[symbol] for symbol in name)
    elif len(name) == 6 and name.startswith("<0x") and name.endswith(">"):  # SentencePiece's byte fallback
        raw = bytes([int(name[3:5], 16)])
    if raw is not None:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw
    if suffix and name.endswith(suffix):
        name = name.removesuffix(suffix) + " "
    return name.replace("\u2581", " ")


def _ends(text: str) -> bool:
    kept = text.rstrip(" ").rstrip(CLOSING)
    return bool(kept) and kept[-1] in ENDS


def _kinds(text: str | bytes) -> tuple[bool, int, int]:
    """Return (whether it starts a word after any token, kind of its first character, kind of its last)."""
    if isinstance(text, str):
        kinds = [_kind(character) for character in text]
        begins = kinds[:1] == [OWN] or (kinds[:1] == [SPACE] and any(kind != SPACE for kind in kinds))
        return (begins, kinds[0], kinds[-1]) if kinds else (False, INNER, INNER)
    first = _byte_kind(text[0])
    leads = [byte for byte in text if byte & 0xC0 != 0x80]
    spaced = text[:1].isspace() and bool(text.strip())
    return first == OWN or spaced, first, _byte_kind(leads[-1]) if leads else INNER


def _kind(character: str) -> int:
    code = ord(character)
    if character.isspace():
        return SPACE
    if is_ideograph(code) or 0x3040 <= code <= 0x30FF:  # kana: written without spaces too
        return OWN
    return LETTER if unicodedata.category(character)[0] in "LMN" else OWN


def _byte_kind(byte: int) -> int:
    """Classify an incomplete character by a byte of UTF-8: ideographs, kana, symbols and pictures have E2 ... E9, EF, F0."""
    if byte & 0xC0 == 0x80:
        return INNER
    if byte < 0x80:
        return _kind(chr(byte))
    return OWN if 0xE2 <= byte <= 0xE9 or byte >= 0xEF else LETTER
