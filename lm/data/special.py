"""Special tokens: the names that published vocabularies give to the same thing, and how missing ones are added."""

from __future__ import annotations

from collections.abc import Iterable

SEPARATOR = "<|endoftext|>"
# How published vocabularies name the token that ends a document, in the order tried.
SEPARATORS = (SEPARATOR, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]")

# Names of one token in BERT, in RoBERTa, BART and T5, and in XLNet.
ALIASES = (
    ("[CLS]", "<s>", "<cls>"),
    ("[SEP]", "</s>", "<sep>"),
    ("[MASK]", "<mask>"),
    ("[PAD]", "<pad>"),
    ("[UNK]", "<unk>"),
)


def find(core, name: str) -> str | None:
    """Return how a vocabulary writes the special token `name`: under its own name, else an alias; None when absent."""
    same = next((names for names in ALIASES if name in names), ())
    return next((n for n in (name, *same) if core.token_to_id(n) is not None), None)


def added(core, names: Iterable[str]):
    """Return a copy of `core` with the missing ones of `names` behind its last id, or None when none is missing."""
    from tokenizers import AddedToken, Tokenizer

    missing = list(dict.fromkeys(name for name in names if find(core, name) is None))
    if not missing:
        return None
    copy = Tokenizer.from_str(core.to_str())
    copy.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in missing])
    return copy


def special_ids(core) -> list[int]:
    """List the ids that are no text: what is marked special, and every known name (vocab.json marks none)."""
    marked = {i for i, token in core.get_added_tokens_decoder().items() if token.special}
    known = {core.token_to_id(name) for names in (*ALIASES, SEPARATORS) for name in names}
    return sorted(marked | (known - {None}))
