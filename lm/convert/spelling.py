"""Which piece of one vocabulary is which of another, however each spells it: "Ġthe", "▁the" and "the" beside "##the"."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from lm.data.tokenizer.builders import is_ideograph, symbol_bytes
from lm.data.tokenizer.special import find, special_ids
from lm.data.tokenizer.tokenizer import Tokenizer

Key = str | bytes  # text, with a leading space where a word begins; bytes that are no whole character


class Spelling:
    """What the pieces of a vocabulary stand for: `keys` by id, `ids` by key (the first of several), specials apart."""

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
        """Say what a piece stands for, given its name."""
        table = symbol_bytes()
        if self.byte_level and all(symbol in table for symbol in name):
            return text_of(bytes(table[symbol] for symbol in name))
        if self.prefix:
            if name.startswith(self.prefix) and len(name) > len(self.prefix):
                return name.removeprefix(self.prefix)
            first = name[:1]  # signs and ideographs are words wherever they stand: no space before them is meant
            return f" {name}" if first.isalnum() and not is_ideograph(ord(first)) else name
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):  # SentencePiece's bytes
            return bytes([int(name[3:5], 16)])
        if self.suffix and name.endswith(self.suffix):  # GPT marks the end of a word; most such pieces are whole words
            return f" {name.removesuffix(self.suffix)}"
        return name.replace("\u2581", " ")

    def like(self, other: Spelling) -> bool:
        """Tell whether the same name means the same piece in both."""
        return (self.kind, self.byte_level, self.prefix, self.suffix) == (
            other.kind, other.byte_level, other.prefix, other.suffix,
        )  # fmt: skip

    def compose(self, key: Key) -> list[int]:
        """Spell another vocabulary's piece with this one's: the ids of its parts, none where there are none.

        A piece from inside a word is cut as a word is, and the first part then exchanged for the same letters inside one.
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
    """Give the same letters at the other place: with a space before them, or without."""
    if isinstance(key, bytes):
        return key
    return key[1:] if key.startswith(" ") and len(key) > 1 else f" {key}"


@dataclass(frozen=True)
class Match:
    """For each id of a new vocabulary the old id that is the same piece, or -1: int [V].

    `same` pieces are, `twins` are the same letters where the old vocabulary has them at the other place only (inside a
    word, or at its beginning), `roles` are special tokens, found by their names and by what they are for.
    """

    old: np.ndarray
    same: int
    twins: int
    roles: int


def match(old: Spelling, new: Spelling) -> Match:
    """Find the pieces of `new` in `old`: by name where both spell alike, else by what they stand for."""
    found = np.full(new.tokenizer.vocab, -1, np.int64)
    paired = roles(old, new)
    found[list(paired)] = list(paired.values())
    names, counts = old.names if old.like(new) else {}, {"same": 0, "twins": 0}
    for name, i in new.names.items():
        if i in new.specials or i not in new.keys:
            continue
        key, kind = new.keys[i], "same"
        at = names.get(name)
        at = old.ids.get(key) if at is None or at in old.specials else at
        if at is None:
            at, kind = old.ids.get(twin(key)), "twins"
        if at is not None:
            found[i] = at
            counts[kind] += 1
    return Match(found, roles=len(paired), **counts)


def roles(old: Spelling, new: Spelling) -> dict[int, int]:
    """Pair special tokens: the same name, another name of the same thing ([CLS] is <s>), the ends of documents."""
    ours, theirs, found = new.tokenizer, old.tokenizer, {}
    for i in sorted(new.specials):
        name = find(theirs.core, ours.core.id_to_token(i))
        if name is not None:
            found[i] = theirs.core.token_to_id(name)
    if ours.separator is not None and theirs.separator is not None:
        found.setdefault(ours.separator, theirs.separator)
    return found
