"""Input layouts of published models for one or two texts: special tokens, token types, characters of each token.

| style | one text | two |
|---|---|---|
| bert | [CLS] A [SEP] | [CLS] A [SEP] B [SEP], types 0 and 1 |
| roberta | <s> A </s> | <s> A </s> </s> B </s> |
| xlnet | A <sep> <cls> | A <sep> B <sep> <cls>, types 0, 1 and 2 |
| t5 | A </s> | A </s> B </s> |
| decoder | A | A, the separator, B; before both the tokenizer's own template |
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from lm.data.tokenizer import special
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check

Style = Literal["bert", "roberta", "xlnet", "t5", "decoder"]
Keep = Literal["start", "end", "both"]
SPECIAL = {
    "bert": ("[PAD]", "[CLS]", "[SEP]"),
    "roberta": ("[PAD]", "[CLS]", "[SEP]"),
    "xlnet": ("[PAD]", "<sep>", "<cls>"),
    "t5": ("[PAD]", "</s>"),
    "decoder": (),
}


class Laid(NamedTuple):
    """One sequence of a row: ids and types int32 [n], and the start of each text."""

    tokens: np.ndarray
    types: np.ndarray
    begins: tuple[int, ...]


def style_of(core: Any, kind: str) -> Style:
    """Choose the style by the network ("xlnet", "decoder", "pair", an encoder-decoder, or "encoder") and its tokens."""
    if kind in ("xlnet", "decoder"):
        return "xlnet" if kind == "xlnet" else "decoder"
    if special.find(core, "[CLS]") == "<s>":
        return "roberta"
    return "t5" if kind == "pair" else "bert"


@dataclass(frozen=True)
class Frame:
    """A tokenizer with a style."""

    tokenizer: Any
    style: Style

    def ids(self, name: str) -> list[int]:
        return [self.tokenizer.special_id(name)]

    def around(self, texts: int) -> list[list[int]]:
        """Return the special tokens before the first text, between two, and after the last."""
        return _around(self, texts)

    def lead(self) -> list[int]:
        """Return the special tokens before a text in the tokenizer's own template."""
        return list(self.tokenizer.around[0])

    def parting(self) -> list[int]:
        check(
            self.tokenizer.separator is not None,
            "two texts for a decoder need a tokenizer with a separator: not Characters",
        )
        return [self.tokenizer.separator]

    def overhead(self, texts: int) -> int:
        """Count the special tokens."""
        before, between, after = self.around(texts)
        return len(before) + len(between) * (texts == 2) + len(after)

    def join(self, texts: Sequence[np.ndarray], limit: int, keep: Keep = "start") -> Laid:
        """Lay one or two texts out in at most `limit` tokens, the longer one cut first; `keep`: the part that stays."""
        before, between, after = self.around(len(texts))
        sizes = longest_first([len(text) for text in texts], limit - self.overhead(len(texts)))
        parts: list[Sequence[int] | np.ndarray] = [before]
        types, begins = [0], []
        for k, (text, size) in enumerate(zip(texts, sizes)):
            if k:
                parts.append(between)
                types.append(0)
            begins.append(sum(map(len, parts)))
            parts.append(cut(text, size, keep))
            types.append(k)
        # The first closing token belongs to the last text; XLNet's <cls> behind it has a type of its own, 2.
        parts += [after[:1], after[1:]]
        types += [len(texts) - 1, 2]
        # The other styles have no token types: all 0.
        typed = self.style in ("bert", "xlnet")
        flat = np.concatenate([np.asarray(part, np.int32) for part in parts])
        return Laid(flat, np.repeat(np.array(types, np.int32) * typed, [len(part) for part in parts]), tuple(begins))

    @property
    def pooled(self) -> Literal["first", "last"]:
        """The position of the token whose state represents the whole sequence, in encoders."""
        return "last" if self.style in ("xlnet", "decoder") else "first"

    @property
    def start(self) -> int:
        """The id that a decoder reads before the source once more: BART's </s>, T5's padding."""
        return self.tokenizer.special_id("[PAD]" if self.style == "t5" else "[SEP]")

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32 [T]."""
        return self.tokenizer.encode(text)

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ids, int32 [T], and the characters [start, end) of each, int32 [T, 2].

        Spaces at a token's ends are left out. Tokens that are parts of one character have the whole character.
        """
        return _spans(self.tokenizer, text)

    def words(self, words: Sequence[str], spaced: bool, where: str) -> list[np.ndarray]:
        """Return the ids of each word, int32 [n] with n > 0: each encoded by itself, behind its space where there is one.

        A word that the tokenizer drops (a control character) becomes the unknown token.
        """
        texts = [f" {word}" if spaced and k and self.tokenizer.byte_level else word for k, word in enumerate(words)]
        if self.tokenizer.characters:
            return [self.tokenizer.encode(text) for text in texts]
        # SentencePiece puts a space before every text: where the words have none between them, it is taken away.
        space, found = None if spaced else self.tokenizer.token_id("\u2581"), []
        for one, word in zip(self.tokenizer.core.encode_batch(texts, add_special_tokens=False), words):
            ids = np.array(one.ids, np.int32)
            while len(ids) > 1 and ids[0] == space:
                ids = ids[1:]
            found.append(ids if len(ids) else self.unknown(word, where))
        return found

    def unknown(self, word: str, where: str) -> np.ndarray:
        name = special.find(self.tokenizer.core, "[UNK]")
        if name is None:
            raise UserError(f"{where}: the tokenizer makes no token of the word {word!r}; mend it")
        return np.array([self.tokenizer.token_id(name)], np.int32)


@functools.lru_cache(maxsize=16)
def _around(frame: Frame, texts: int) -> list[list[int]]:
    if frame.style == "decoder":
        return [frame.lead(), frame.parting() if texts == 2 else [], []]
    if frame.style == "xlnet":
        return [[], frame.ids("<sep>"), frame.ids("<sep>") + frame.ids("<cls>")]
    if frame.style == "t5":
        return [[], frame.ids("</s>"), frame.ids("</s>")]
    begin, end = frame.ids("[CLS]"), frame.ids("[SEP]")
    return [begin, end * (2 if frame.style == "roberta" else 1), end]


@functools.lru_cache(maxsize=64)  # many questions are about one paragraph
def _spans(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
    if tokenizer.characters:
        ids = tokenizer.encode(text)
        return ids, np.stack([np.arange(len(ids)), np.arange(1, len(ids) + 1)], 1).astype(np.int32)
    found = tokenizer.core.encode(text, add_special_tokens=False)
    spans = np.array(found.offsets, np.int32).reshape(-1, 2)
    for k, (start, end) in enumerate(spans.tolist()):
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        spans[k] = start, end
    ids = np.array(found.ids, np.int32)
    # Read only, as every question about the paragraph gets the same arrays.
    ids.flags.writeable = spans.flags.writeable = False
    return ids, spans


def cut(text: np.ndarray, size: int, keep: Keep) -> np.ndarray:
    """Cut a text to `size` tokens: the first, the last, or half of each (one more of the last)."""
    first = {"start": size, "end": 0, "both": size // 2}[keep]
    if len(text) <= size:
        return text
    return np.concatenate([text[:first], text[len(text) - size + first :]])


def longest_first(sizes: Sequence[int], limit: int) -> list[int]:
    """Cut one or two lengths to a sum of at most `limit`, the longer first, as the tokenizers library does."""
    if limit < len(sizes):
        raise UserError(f"objective.rows.length leaves {limit} tokens for {len(sizes)} text(s); raise it")
    if len(sizes) == 1:
        return [min(sizes[0], limit)]
    if sum(sizes) <= limit:
        return list(sizes)
    swap = sizes[0] > sizes[1]
    short, long = min(sizes), max(sizes)
    long = max(short, limit - short) if short <= limit else short
    if short + long > limit:
        short, long = limit // 2, limit // 2 + limit % 2
    return [long, short] if swap else [short, long]
