"""Text to token ids and back: bytes, characters, byte-level BPE, published vocabularies; all saved as tokenizer.json.

The dataclasses at the top are config; `Tokenizer` is what runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.data import spm
from lm.errors import UserError

SEPARATOR = "<|endoftext|>"
UNKNOWN = "\ufffd"
# How published vocabularies name the token that ends a document, in the order tried.
SEPARATORS = (SEPARATOR, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]")


@dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes: id = byte value, and 256 for the separator."""

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return Tokenizer(_byte_level({symbol: byte for byte, symbol in enumerate(byte_symbols())}))


@dataclass(frozen=True)
class Characters:
    """The characters of the whole corpus in code order, no separator; `unknown` adds U+FFFD for all others."""

    unknown: bool = False

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        found = functools.reduce(np.union1d, map(_codes, texts()), np.zeros(0, np.uint32))
        alphabet = [chr(code) for code in found]
        if self.unknown and UNKNOWN not in alphabet:
            alphabet.append(UNKNOWN)
        return Tokenizer(_character_level(alphabet, self.unknown))


@dataclass(frozen=True)
class BytePair:
    """Byte-level BPE with GPT-2's pre-tokenisation (Radford et al. 2019), trained on the training split.

    At most `train_bytes` of text are looked at. A small corpus may give fewer than `vocab` tokens.
    """

    vocab: int = 4096
    train_bytes: int = 200_000_000

    def __post_init__(self):
        if self.vocab < 257:
            raise UserError(f"BytePair(vocab={self.vocab}): 256 bytes and the separator need at least 257")

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        from tokenizers import pre_tokenizers, trainers

        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab,
            special_tokens=[SEPARATOR],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core = _byte_level(None)
        core.train_from_iterator(_first(texts(), self.train_bytes), trainer)
        return Tokenizer(core)


@dataclass(frozen=True)
class Pretrained:
    """A tokenizer.json or a model folder with one; else SentencePiece's *.model, GPT-2's or BERT's files."""

    path: str

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return Tokenizer.load(self.path)


Vocabulary = Bytes | Characters | BytePair | Pretrained


class Tokenizer:
    """Encode and decode; `vocab` is the number of ids, `separator` the id between documents (None: there is none)."""

    def __init__(self, core, separator: str | None = None):
        core.no_truncation()
        core.no_padding()
        # Text that happens to contain "<|endoftext|>" is text: only code may place a special token.
        core.encode_special_tokens = True
        self.core = core
        self.vocab: int = max(core.get_vocab(with_added_tokens=True).values()) + 1
        names = (separator,) if separator else SEPARATORS
        self.separator: int | None = next((i for i in map(core.token_to_id, names) if i is not None), None)
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

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Return the ids, int32 [T], adding no special token; `special` recognises those written in the text."""
        if special:
            return np.array(self._special.encode(_clean(text), add_special_tokens=False).ids, np.int32)
        if self.bytes:
            return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)
        if self.characters:
            return self._encode_characters(text)
        return np.array(self.core.encode(_clean(text), add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text; BPE uses all cores."""
        if self.bytes or self.characters:
            return [self.encode(text) for text in texts]
        found = self.core.encode_batch_fast([_clean(text) for text in texts], add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in found]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Return the text; special tokens are left out unless `special`, bytes that are no UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64).ravel()
        if self.bytes and not special:
            return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", "replace")
        if self.characters:
            return self._symbols[ids].astype("<u4").tobytes().decode("utf-32-le")
        return self.core.decode(ids.tolist(), skip_special_tokens=not special)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return what each token stands for, to show; a byte that is no character alone is written like `\\xe4`."""
        names = [self.core.id_to_token(int(i)) for i in np.asarray(ids).ravel()]
        return [self._piece(name) if name is not None else "" for name in names]

    def _piece(self, name: str) -> str:
        if not self.byte_level:
            return name.replace("\u2581", " ")
        table = _symbol_bytes()
        if name in self._added or any(symbol not in table for symbol in name):
            return name
        return bytes(table[symbol] for symbol in name).decode("utf-8", "backslashreplace")

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its name in the vocabulary, None when there is none."""
        return self.core.token_to_id(token)

    def save(self, path: str | os.PathLike) -> None:
        """Write tokenizer.json (`path`); an unusual separator goes to tokenizer_config.json beside it."""
        path = Path(path)
        path.write_text(self.core.to_str(pretty=True), encoding="utf-8")
        name = None if self.separator is None else self.core.id_to_token(self.separator)
        if name is not None and name != next((s for s in SEPARATORS if self.token_id(s) is not None), None):
            (path.parent / "tokenizer_config.json").write_text(json.dumps({"eos_token": name}), encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike) -> Tokenizer:
        """Read a tokenizer.json or a model folder."""
        path = Path(path).expanduser()
        folder = path if path.is_dir() else path.parent
        return Tokenizer(_read(path), _end_token(folder))

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
    def _added(self) -> set[str]:
        return {token.content for token in self.core.get_added_tokens_decoder().values()}

    @functools.cached_property
    def _special(self):
        from tokenizers import Tokenizer as Core

        return Core.from_str(self.core.to_str())


@functools.cache
def byte_symbols() -> tuple[str, ...]:
    """Return GPT-2's printable stand-in for each byte value: itself when printable Latin-1, else 256, 257, ..."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


@functools.cache
def _symbol_bytes() -> dict[str, int]:
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def _byte_level(vocab: dict[str, int] | None, merges: Iterable[tuple[str, str]] = ()):
    """Build byte-level BPE; a given vocab gets no pre-tokenising regex when it has no merges (each byte is a token)."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers

    merges = list(merges)
    core = Core(models.BPE(vocab=vocab, merges=merges) if vocab else models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not vocab or bool(merges))
    core.decoder = decoders.ByteLevel()
    if vocab:
        core.add_special_tokens([SEPARATOR])
    return core


def _character_level(alphabet: list[str], unknown: bool):
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models

    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    core = Core(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN if unknown else None))
    core.decoder = decoders.Fuse()
    return core


def _read(path: Path):
    """Return the `tokenizers` object that a file or folder holds."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers import Tokenizer as Core

    if not path.exists():
        raise UserError(f"{path} does not exist: give a tokenizer.json or a folder that holds one")
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    try:
        if file.exists() and file.suffix == ".json":
            return Core.from_file(str(file))
        if models := [file] if file.suffix == ".model" else sorted(folder.glob("*.model")):
            return spm.read(models[0])
        if (folder / "merges.txt").exists() and (folder / "vocab.json").exists():
            vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            return _byte_level(vocab, [tuple(s.split(" ")) for s in lines if s and not s.startswith("#version")])
        if (folder / "vocab.txt").exists():
            lower = _settings(folder).get("do_lower_case", True)
            return BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower)._tokenizer
    except UserError:
        raise
    except Exception as error:  # the Rust side raises bare Exception
        raise UserError(f"{file} cannot be read as a tokenizer: {str(error).splitlines()[0]}") from None
    raise UserError(f"{folder} holds no tokenizer.json (nor *.model, vocab.json and merges.txt, or vocab.txt)")


def _settings(folder: Path) -> dict:
    file = folder / "tokenizer_config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        raise UserError(f"{file} is not JSON: mend or remove it") from None


def _end_token(folder: Path) -> str | None:
    token = _settings(folder).get("eos_token")
    return token.get("content") if isinstance(token, dict) else token


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
