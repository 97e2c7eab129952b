"""Build the Rust objects behind tokenizers, and read them from published files."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.tokenizer.special import SEPARATOR, SEPARATORS, set_apart
from lm.errors import UserError, check
from lm.strict_json import load_json

UNKNOWN = "\ufffd"
IDEOGRAPHS = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip
# Classes of the reference library that cut text as GPT-2's does before pairs are merged.
GPT2_WAY = ("GPT2", "Roberta", "Bart", "Longformer", "LED", "CodeGen", "Deberta", "OPT")
# Yang et al. 2024, the expression that Qwen's published tokenizers cut text by.
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
IDS, GROWTH = 1 << 24, 1000  # ids that a tokenizer.json may have, and how much longer it may make a text
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@functools.cache
def byte_symbols() -> tuple[str, ...]:
    """Return GPT-2's printable stand-in for each byte value: itself when printable Latin-1, else 256, 257, ..."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


@functools.cache
def symbol_bytes() -> dict[str, int]:
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def byte_level(vocab: dict[str, int] | None, merges: Iterable[tuple[str, str]] = (), special: Sequence[str] = (SEPARATOR,)):
    """Build byte-level BPE; a given vocab gets no pre-tokenising regex when it has no merges (each byte is a token)."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers

    merges = list(merges)
    core = Core(models.BPE(vocab=vocab, merges=merges) if vocab else models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not vocab or bool(merges))
    core.decoder = decoders.ByteLevel()
    if vocab:
        core.add_special_tokens(list(special))
    return core


def class_of(folder: Path) -> str:
    """Name the reference library's tokenizer of a folder, without "Tokenizer"; "" if no file names it."""
    file = folder / "config.json"
    model = str(load_json(file, dict).get("model_type")) if file.exists() else ""
    kinds = {"transfo-xl": "TransfoXL", "qwen2": "Qwen2", "qwen3": "Qwen2", "openai-gpt": "OpenAIGPT"}
    return re.sub("Tokenizer(Fast)?$", "", str(settings(folder).get("tokenizer_class") or "")) or kinds.get(model, "")


def word_list(words: list[str]):
    """Build a tokenizer of whole words between spaces, as WikiText-103 has them; a line's end is <eos>."""
    from tokenizers import Tokenizer as Core
    from tokenizers import models, normalizers, pre_tokenizers

    vocab = {word.split()[0]: i for i, word in enumerate(words) if word.split()}
    unknown = next((name for name in ("<unk>", "<UNK>") if name in vocab), None)
    core = Core(models.WordLevel(vocab, unk_token=unknown))
    core.normalizer = normalizers.Replace("\n", " <eos> ") if "<eos>" in vocab else None
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return core


def published_pairs(vocab: dict[str, int], merges: list[tuple[str, str]], kind: str = "", prefix: bool = False):
    """Build the tokenizer of a vocab.json and a merges.txt.

    Of bytes cut GPT-2's way (RoBERTa and BART too) or Qwen's, or of words that end in </w> (GPT). `kind` is `class_of`
    the folder, `prefix` puts a space before the text. Raises UserError for a class that cuts text in another way.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Core

    if kind not in ("", *GPT2_WAY, "Qwen2", "OpenAIGPT"):
        raise UserError(
            f"tokenizer_config.json: {kind}Tokenizer cuts text before vocab.json and merges.txt apply, how they do not say: "
            "save its tokenizer.json (transformers' fast tokenizer) beside them"
        )
    core = byte_level(vocab, merges, ())
    if prefix:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    if kind == "Qwen2":
        core.normalizer = normalizers.NFC()
        cut, symbols = pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([cut, symbols])
    elif any(name.endswith("</w>") for name in vocab):
        unknown = next((name for name in ("<unk>", "[UNK]") if name in vocab), None)
        core = Core(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, end_of_word_suffix="</w>", fuse_unk=False))
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        core.decoder = decoders.BPEDecoder(suffix="</w>")
    return core


def character_level(alphabet: list[str], unknown: bool):
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models

    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    core = Core(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN if unknown else None))
    core.decoder = decoders.Fuse()
    return core


def word_piece(vocab: dict[str, int] | None, lowercase: bool):
    """Build BERT's tokenizer."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    core = Core(models.WordPiece(vocab=vocab, unk_token="[UNK]") if vocab else models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    if vocab:
        core.add_special_tokens(list(BERT))
    return core


def trained_word_piece(texts: Callable[[], Iterable[str]], vocab: int, lowercase: bool):
    """Train BERT's tokenizer; the same text gives the same ids.

    The trainer numbers the ##x in the order of a hash table, and ties in its merges follow the numbers. So the alphabet
    is counted here and handed over in code order, ## forms as "special tokens", which the core built from the
    vocabulary does not know of.
    """
    from tokenizers import trainers

    core = word_piece(None, lowercase)
    alphabet = _alphabet(texts(), core.normalizer, vocab * 3 // 4)
    inner = [f"##{c}" for c in alphabet if not stands_alone(c)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab,
        special_tokens=[*BERT, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    core.train_from_iterator(texts(), trainer)
    return word_piece(json.loads(core.to_str())["model"]["vocab"], lowercase)


def _alphabet(texts: Iterable[str], normalizer: Any, limit: int) -> list[str]:
    """Return the most frequent characters of normalised text, in code order, that with their ## forms are `limit`."""
    counts = np.zeros(0x110000, np.int64)
    # Joined to a million characters, as each count runs over all code points.
    for text in _joined(texts, 1 << 20):
        codes = np.frombuffer(normalizer.normalize_str(text).encode("utf-32-le"), np.uint32)
        counts += np.bincount(codes, minlength=len(counts))
    counts[[code for code in np.flatnonzero(counts).tolist() if chr(code).isspace()]] = 0
    # Ties by code point: the same text gives the same alphabet on every machine.
    order = np.lexsort((np.arange(len(counts)), -counts))[: np.count_nonzero(counts)]
    cost = np.cumsum([1 if stands_alone(chr(code)) else 2 for code in order.tolist()])
    return [chr(code) for code in sorted(order[cost <= limit].tolist())]


def _joined(texts: Iterable[str], size: int) -> Iterator[str]:
    held, length = [], 0
    for text in texts:
        held.append(text)
        length += len(text)
        if length >= size:
            yield "\n".join(held)
            held, length = [], 0
    yield "\n".join(held)


def is_ideograph(code: int) -> bool:
    """Whether BERT's tokenizer treats a character as Chinese, a token by itself."""
    return any(low <= code <= high for low, high in IDEOGRAPHS)


def stands_alone(character: str) -> bool:
    """Whether BERT's tokenizer makes a character a token by itself: Chinese, category P and all symbols of ASCII."""
    symbol = character.isascii() and not character.isalnum()
    return symbol or is_ideograph(ord(character)) or unicodedata.category(character)[0] == "P"


def load_core(path: Path) -> Any:
    """Load the `tokenizers` object of a file or folder."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers import Tokenizer as Core

    if not path.exists():
        raise UserError(f"{path} does not exist: give a tokenizer.json or a folder that holds one")
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    try:
        # tokenizer.json first: the other formats leave open how text is normalised and cut.
        if file.exists() and file.suffix == ".json":
            bounded(load_json(file, dict), str(file))
            return Core.from_file(str(file))
        if models := [file] if file.suffix == ".model" else sorted(folder.glob("*.model")):
            from lm.data.tokenizer import sentencepiece

            return sentencepiece.load_model(models[0])
        if (folder / "merges.txt").exists() and (folder / "vocab.json").exists():
            vocab = load_json(folder / "vocab.json", dict)
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges: list[Any] = [tuple(s.split(" ")) for s in lines if s and not s.startswith("#version")]
            core = published_pairs(vocab, merges, class_of(folder), bool(settings(folder).get("add_prefix_space")))
            set_apart(core, folder, settings(folder))
            return core
        kind = class_of(folder)
        if (folder / "vocab.txt").exists() and kind == "TransfoXL":
            return word_list((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
        if kind == "TransfoXL":
            raise UserError(
                f"{folder}: vocab.pkl and vocab.bin are pickles, which are not read; put the words, one a line in the order of "
                "their ids, beside the weights as vocab.txt"
            )
        if (folder / "vocab.txt").exists():
            saved = settings(folder)
            core = BertWordPieceTokenizer(
                str(folder / "vocab.txt"),
                lowercase=saved.get("do_lower_case", True),
                strip_accents=saved.get("strip_accents"),
                handle_chinese_chars=saved.get("tokenize_chinese_chars", True),
            )._tokenizer
            set_apart(core, folder, saved)
            return core
    except UserError:
        raise
    except Exception as error:  # the Rust side raises bare Exception
        raise UserError(f"{file} cannot be read as a tokenizer: {str(error).splitlines()[0]}") from None
    raise UserError(f"{path} holds no tokenizer.json (nor *.model, vocab.json and merges.txt, or vocab.txt)")


def bounded(saved: dict, where: str) -> None:
    """Refuse a tokenizer.json that would take all memory: the library ends the process there, without an exception.

    Its tables are as long as the largest id, and rules that write more than they replace multiply.
    """
    model = saved.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [one.get("id") for one in saved.get("added_tokens") or () if isinstance(one, dict)]
    odd = next((i for i in ids if type(i) is not int or not 0 <= i < IDS), None)
    check(odd is None, f"{where}: {odd!r:.40} is no id of a token: a whole number from 0 to {IDS - 1:,}")
    growth, queue = 1.0, [saved.get("normalizer"), saved.get("decoder")]
    while queue:
        one = queue.pop()
        queue += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        if isinstance(one, dict) and one.get("type") == "Replace":
            pattern = one.get("pattern")
            least = pattern.get("String") if isinstance(pattern, dict) else None
            growth *= max(1.0, len(str(one.get("content"))) / max(1, len(str(least)) if least else 1))
    check(growth <= GROWTH, f"{where}: its replacements make a text {growth:,.0f} times as long; at most {GROWTH} are read")


def settings(folder: Path) -> dict:
    file = folder / "tokenizer_config.json"
    return load_json(file, dict) if file.exists() else {}


def separator_names(folder: Path) -> Sequence[str]:
    """Return the names of the token that separates documents, in the order tried; none where the folder disables it."""
    saved = settings(folder)
    if "separator" in saved:
        name = named(folder, "separator")
        return [name] if name else []
    name = named(folder, "eos_token")
    return [name] if name else SEPARATORS


def named(folder: Path, kind: str) -> str | None:
    """Return the token that a folder's tokenizer_config.json names under `kind` (eos_token, bos_token)."""
    token = settings(folder).get(kind)
    name = token.get("content") if isinstance(token, dict) else token
    right = name is None or isinstance(name, str)
    check(right, f"{folder / 'tokenizer_config.json'}: {kind} must be a text, or an object with a content that is one")
    return name
