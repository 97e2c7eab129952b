"""Alignment of two vocabularies' pieces across notations: "Ġthe", "▁the", and "the" against "##the"."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from lm.data.tokenizer.builders import is_ideograph, symbol_bytes
from lm.data.tokenizer.special import find, special_ids
from lm.data.tokenizer.tokenizer import Tokenizer

Key = str | bytes  # text, with a leading space at the start of a word; bytes of an incomplete character


class Spelling:
    """The texts of a vocabulary's pieces: `keys` by id, `ids` by key (the first of several), without specials."""

    def __init__(self, tokenizer: Tokenizer):
        model = json.loads(tokenizer.core.to_str())["model"]
        self.tokenizer, self.kind, self.byte_level = tokenizer, model["type"], tokenizer.byte_level
        self.prefix = model.get("continuing_subword_prefix") if self.kind == "WordPiece" else None
        self.suffix = model.get("end_of_word_suffix")
        self.specials = set(special_ids(tokenizer.core))
        self.names = tokenizer.core.get_vocab(with_added_tokens=True)
        order = sorted((i, name) for name, i in self.names.items() if i not in self.specials)
        self.keys: dict[int, Key] = {i: self.key(name) for i, name in order}
        self.ids: dict[Key, int] = {}
        for i, key in self.keys.items():
            self.ids.setdefault(key, i)

    def key(self, name: str) -> Key:
        """Return the text of a piece from its name."""
        table = symbol_bytes()
        if self.byte_level and all(symbol in table for symbol in name):
            return text_of(bytes(table[symbol] for symbol in name))
        if self.prefix:
            if name.startswith(self.prefix) and len(name) > len(self.prefix):
                return name.removeprefix(self.prefix)
            first = name[:1]  # punctuation and ideographs are words anywhere: no space is implied
            return f" {name}" if first.isalnum() and not is_ideograph(ord(first)) else name
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):  # SentencePiece's bytes
            return bytes([int(name[3:5], 16)])
        if self.suffix and name.endswith(self.suffix):  # GPT marks the end of a word; most such pieces are whole words
            return f" {name.removesuffix(self.suffix)}"
        return name.replace("\u2581", " ")

    def like(self, other: Spelling) -> bool:
        """Whether the same name means the same piece in both."""
        return (self.kind, self.byte_level, self.prefix, self.suffix) == (
            other.kind, other.byte_level, other.prefix, other.suffix,
        )  # fmt: skip

    def compose(self, key: Key) -> list[int]:
        """Tokenize another vocabulary's piece with this one: the ids of its parts, perhaps none.

        A word-internal piece is tokenized as a word, and the first part then replaced by its word-internal twin.
        """
        if isinstance(key, bytes) or self.tokenizer.characters:
            units = [key[i : i + 1] for i in range(len(key))]
            units = [text_of(unit) if isinstance(unit, bytes) else unit for unit in units]
            return [self.ids[unit] for unit in units if unit in self.ids]
        if self.byte_level:
            return self.tokenizer.encode(key).tolist()
        ids = [i for i in self.tokenizer.encode(key.lstrip(" ") or key).tolist() if i not in self.specials]
        if ids and not key.startswith(" ") and str(self.keys[ids[0]]).startswith(" "):
            ids[0] = self.ids.get(twin(self.keys[ids[0]]), ids[0])
        return ids


def text_of(raw: bytes) -> Key:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def twin(key: Key) -> Key:
    """Toggle the leading space: the same letters inside a word, or at its start."""
    if isinstance(key, bytes):
        return key
    return key[1:] if key.startswith(" ") and len(key) > 1 else f" {key}"


@dataclass(frozen=True)
class Match:
    """For each id of a new vocabulary the old id of the same piece, or -1: int [V].

    Counts: `same` pieces; `twins`, the same letters that the old vocabulary has only inside a word or only at its start;
    `roles`, special tokens, matched by name and by function.
    """

    old: np.ndarray
    same: int
    twins: int
    roles: int


def match(old: Spelling, new: Spelling) -> Match:
    """Match the pieces of `new` to `old`: by name where both have one notation, else by text."""
    matched = np.full(new.tokenizer.vocab, -1, np.int64)
    paired = roles(old, new)
    matched[list(paired)] = list(paired.values())
    names, counts = old.names if old.like(new) else {}, {"same": 0, "twins": 0}
    for name, i in new.names.items():
        if i in new.specials or i not in new.keys:
            continue
        key, kind = new.keys[i], "same"
        at = names.get(name)
        # A name that is special there stands for no text, so its row means something else.
        at = old.ids.get(key) if at is None or at in old.specials else at
        if at is None:
            at, kind = old.ids.get(twin(key)), "twins"
        if at is not None:
            matched[i] = at
            counts[kind] += 1
    return Match(matched, roles=len(paired), **counts)


def roles(old: Spelling, new: Spelling) -> dict[int, int]:
    """Pair special tokens: by name, by another name of the same function ([CLS] is <s>), and the document separators."""
    ours, theirs, found = new.tokenizer, old.tokenizer, {}
    for i in sorted(new.specials):
        name = find(theirs.core, ours.core.id_to_token(i))
        if name is not None:
            found[i] = theirs.core.token_to_id(name)
    if ours.separator is not None and theirs.separator is not None:
        found.setdefault(ours.separator, theirs.separator)
    return found
