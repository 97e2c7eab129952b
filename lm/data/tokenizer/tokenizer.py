"""Text to token ids and back: bytes, characters, byte-level BPE, published vocabularies; all saved as tokenizer.json.

The dataclasses at the top are config values; `build` makes a `Tokenizer` of each.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.data.tokenizer import builders, special
from lm.data.tokenizer.builders import IDS, UNKNOWN, byte_symbols, symbol_bytes
from lm.data.tokenizer.special import SEPARATOR, SEPARATORS
from lm.data.tokenizer.vocabulary import Pieces
from lm.errors import UserError, check


@dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes: id = byte value, and 256 for the separator."""

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return Tokenizer(builders.byte_level({symbol: byte for byte, symbol in enumerate(byte_symbols())}))


@dataclass(frozen=True)
class Characters:
    """The characters of the whole corpus in code order, no separator; `unknown` adds U+FFFD for all others."""

    unknown: bool = False

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        found = functools.reduce(np.union1d, map(_codes, texts()), np.zeros(0, np.uint32))
        alphabet = [chr(code) for code in found]
        if self.unknown and UNKNOWN not in alphabet:
            alphabet.append(UNKNOWN)
        return Tokenizer(builders.character_level(alphabet, self.unknown))


@dataclass(frozen=True)
class BytePair:
    """Byte-level BPE with GPT-2's pre-tokenisation (Radford et al. 2019), trained on the training split.

    At most `train_bytes` of text are read. A small corpus may yield fewer than `vocab` tokens.
    """

    vocab: int = 4096
    train_bytes: int = 200_000_000

    def __post_init__(self):
        right = 257 <= self.vocab <= IDS
        check(right, f"BytePair(vocab={self.vocab}): 256 bytes and the separator need at least 257, and {IDS:,} are the most")

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        from tokenizers import pre_tokenizers, trainers

        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab,
            special_tokens=[SEPARATOR],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core = builders.byte_level(None)
        core.train_from_iterator(_first(texts(), self.train_bytes), trainer)
        return Tokenizer(core)


@dataclass(frozen=True)
class WordPiece:
    """BERT's tokenizer (Devlin et al. 2019), trained on the training split: whole words, and pieces ## of rarer ones.

    [PAD] [UNK] [CLS] [SEP] [MASK] are ids 0 to 4, and [SEP] separates documents. Ideographs and punctuation stand
    alone; `lowercase` also removes accents. Decoding does not restore the text's spaces.
    """

    vocab: int = 8192
    lowercase: bool = True
    train_bytes: int = 200_000_000  # of training text, from its beginning, that the tokenizer is trained on

    def __post_init__(self):
        check(100 <= self.vocab <= IDS, f"WordPiece(vocab={self.vocab}): give at least 100 and at most {IDS:,}")

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return Tokenizer(builders.trained_word_piece(lambda: _first(texts(), self.train_bytes), self.vocab, self.lowercase))


@dataclass(frozen=True)
class Pretrained:
    """A tokenizer.json or a model folder with one; else SentencePiece's *.model, GPT-2's or BERT's files."""

    path: str

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return Tokenizer.load(self.path)


Vocabulary = Bytes | Characters | BytePair | WordPiece | Pretrained


class Tokenizer:
    """Encode and decode; `vocab` is the number of ids, `separator` the id between documents (None: there is none).

    `separators`: names of the token that separates, in the order tried; `first`: of the one that a published folder
    says begins a text (bos_token), whether or not its template puts it there.
    """

    def __init__(self, core, separators: Sequence[str] = SEPARATORS, first: str | None = None):
        core.no_truncation()
        core.no_padding()
        # Text that happens to contain "<|endoftext|>" is text: only code may place a special token.
        core.encode_special_tokens = True
        self.core = core
        self.vocab: int = max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        check(0 < self.vocab <= IDS, f"a tokenizer of {self.vocab:,} ids: give one of at least 1 and at most {IDS:,}")
        self.separator: int | None = next((i for i in map(core.token_to_id, separators) if i is not None), None)
        self.first: int | None = None if first is None else core.token_to_id(first)
        self.reads_special = False  # special tokens written in a text are meant as such: see `reading_special`
        self._configure(json.loads(core.to_str()))

    def _configure(self, saved: dict) -> None:
        """Recognise bytes and characters by the saved form, so that they take the numpy path after a reload too."""
        model, pre = saved["model"], saved["pre_tokenizer"]
        plain = model["type"] == "BPE" and not model["merges"] and not saved["normalizer"]
        self.bytes = bool(plain and pre and pre["type"] == "ByteLevel" and not pre["add_prefix_space"])
        self.bytes = self.bytes and list(model["vocab"].values()) == list(range(256)) and len(byte_symbols()) == 256
        self.characters = plain and pre is None and all(len(symbol) == 1 for symbol in model["vocab"])
        self.byte_level = "ByteLevel" in json.dumps(saved["decoder"])
        if self.characters:
            symbols = sorted(model["vocab"], key=model["vocab"].get)
            self._symbols = np.array([ord(symbol) for symbol in symbols], np.uint32)
            missing = model["vocab"][model["unk_token"]] if model["unk_token"] else -1
            self._ids = np.full(0x110000, missing, np.int32)
            self._ids[self._symbols] = np.arange(len(symbols))

    def encode(self, text: str, special: bool = False, template: bool = False) -> np.ndarray:
        """Return the ids, int32 [T]: `special` recognises special tokens written in the text, `template` adds the
        tokenizer's own around it.
        """
        if special or template or self.reads_special:
            if self.characters:  # the core would pass over a character that it does not know
                self._encode_characters(functools.reduce(lambda rest, name: rest.replace(name, ""), self._added, text))
            return np.array(self._core(special).encode(_clean(text), add_special_tokens=template).ids, np.int32)
        if self.bytes:
            return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)
        if self.characters:
            return self._encode_characters(text)
        return np.array(self.core.encode(_clean(text), add_special_tokens=False).ids, np.int32)

    def _core(self, special: bool):
        return self._special if special or self.reads_special else self.core

    def encode_batch(self, texts: list[str], special: bool = False, template: bool = False) -> list[np.ndarray]:
        """Return the ids of each text, as `encode`; BPE uses all cores."""
        if self.bytes or self.characters:
            return [self.encode(text, special, template) for text in texts]
        found = self._core(special).encode_batch_fast([_clean(text) for text in texts], add_special_tokens=template)
        return [np.array(one.ids, np.int32) for one in found]

    def encode_ends(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return each text's ids and, for each, the character after its last: int32 [T] both."""
        if self.bytes or self.characters:
            return [(ids, _ends(ids, self.bytes)) for ids in self.encode_batch(texts)]
        found = self.core.encode_batch([_clean(text) for text in texts], add_special_tokens=False)
        return [(np.array(one.ids, np.int32), np.array(one.offsets, np.int32).reshape(-1, 2)[:, 1]) for one in found]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Return the text; special tokens are left out unless `special`, bytes that are no UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64).ravel()
        if self.bytes and not special:
            return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", "replace")
        if self.characters and not special:
            return self._symbols[ids[ids < len(self._symbols)]].astype("<u4").tobytes().decode("utf-32-le")
        return self.core.decode(ids.tolist(), skip_special_tokens=not special)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each token, for display; an incomplete character is written like `\\xe4`."""
        names = [self.core.id_to_token(int(i)) for i in np.asarray(ids).ravel()]
        return [self._piece(name) if name is not None else "" for name in names]

    def _piece(self, name: str) -> str:
        if not self.byte_level:
            return name.replace("\u2581", " ")
        table = symbol_bytes()
        if name in self._added or any(symbol not in table for symbol in name):
            return name
        return bytes(table[symbol] for symbol in name).decode("utf-8", "backslashreplace")

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its name in the vocabulary, None when there is none."""
        return self.core.token_to_id(token)

    def special_id(self, name: str) -> int:
        """Return the id of a special token under its own name or that of a published vocabulary ([CLS] is <s>)."""
        found = special.find(self.core, name)
        if found is None:
            raise UserError(f"the tokenizer has no token {name}: add it by Tokenizer.with_special, or use another one")
        return self.core.token_to_id(found)

    def reading_special(self) -> Tokenizer:
        """Return a tokenizer for which special tokens written in a text are these tokens, not text."""
        found = copy.copy(self)
        found.reads_special = True
        return found

    @functools.cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids before and after a text in the tokenizer's own template."""
        found = self.core.encode("a", add_special_tokens=True)
        text = [i for i, added in enumerate(found.special_tokens_mask) if not added] or [len(found.ids)]
        return tuple(found.ids[: text[0]]), tuple(found.ids[text[-1] + 1 :])

    def with_special(self, names: Iterable[str]) -> Tokenizer:
        """Return a tokenizer that has these special tokens, missing ones behind the last id; itself if none is."""
        core = special.added(self.core, names)
        return self if core is None else Tokenizer(core, self._separators(), self._name(self.first))

    def piece_table(self) -> Pieces:
        """Return the tables of the vocabulary, made once."""
        return self._pieces

    def save(self, path: str | os.PathLike) -> None:
        """Write tokenizer.json (`path`); an unusual separator or first token goes to tokenizer_config.json beside it."""
        path = Path(path)
        path.write_text(self.core.to_str(pretty=True), encoding="utf-8")
        names = self._separators()
        found: dict[str, str | None] = {}
        if names[:1] != [s for s in SEPARATORS if self.token_id(s) is not None][:1]:
            found = {"eos_token": names[0]} if names else {"separator": None}
        if self.first not in (None, self.separator, *self.around[0][-1:]):
            found["bos_token"] = self._name(self.first)
        if found:
            (path.parent / "tokenizer_config.json").write_text(json.dumps(found), encoding="utf-8")

    def _separators(self) -> list[str]:
        return [] if self.separator is None else [self.core.id_to_token(self.separator)]

    def _name(self, token: int | None) -> str | None:
        return None if token is None else self.core.id_to_token(token)

    @staticmethod
    def load(path: str | os.PathLike) -> Tokenizer:
        """Read a tokenizer.json or a model folder."""
        path = Path(path).expanduser()
        folder = path if path.is_dir() else path.parent
        return Tokenizer(builders.load_core(path), builders.separator_names(folder), builders.named(folder, "bos_token"))

    def sha256(self) -> str:
        return hashlib.sha256(self.core.to_str().encode()).hexdigest()

    def _encode_characters(self, text: str) -> np.ndarray:
        codes = _codes(text)
        ids = self._ids[codes]
        if len(ids) and ids.min() < 0:
            at = int(np.argmin(ids))
            raise UserError(
                f"character {text[at]!r} (U+{codes[at]:04X}, at {at}) is not in this tokenizer's alphabet of "
                f"{self.vocab}; train with Characters(unknown=True) or Bytes() to take any text"
            )
        return ids

    @functools.cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.core, self.vocab, symbol_bytes() if self.byte_level else None)

    @functools.cached_property
    def _added(self) -> set[str]:
        return {token.content for token in self.core.get_added_tokens_decoder().values()}

    @functools.cached_property
    def _special(self):
        from tokenizers import Tokenizer as Core

        return Core.from_str(self.core.to_str())


def _ends(ids: np.ndarray, utf8: bool) -> np.ndarray:
    """Return the character after each byte's or character's."""
    return np.cumsum(ids & 0xC0 != 0x80, dtype=np.int32) if utf8 else np.arange(1, len(ids) + 1, dtype=np.int32)


def _first(texts: Iterable[str], limit: int) -> Iterable[str]:
    for text in texts:
        if limit <= 0:
            return
        yield text
        limit -= len(text.encode())


def _codes(text: str) -> np.ndarray:
    try:
        return np.frombuffer(text.encode("utf-32-le"), np.uint32)
    except UnicodeEncodeError as error:
        raise _half_pair(error) from None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _half_pair(error) from None


def _clean(text: str) -> str:
    _utf8(text)
    return text


def _half_pair(error: UnicodeEncodeError) -> UserError:
    return UserError(f"text has half a surrogate pair at character {error.start}: no Unicode text, mend its source")
