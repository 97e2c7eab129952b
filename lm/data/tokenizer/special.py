"""Special tokens: their names in published vocabularies, and the addition of missing ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.errors import check
from lm.strict_json import load_json

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


def find(core: Any, name: str) -> str | None:
    """Return the name of a special token in a vocabulary: its own, else an alias; None when absent."""
    same = next((names for names in ALIASES if name in names), ())
    return next((n for n in (name, *same) if core.token_to_id(n) is not None), None)


def added(core: Any, names: Iterable[str]) -> Any:
    """Return a copy of `core` with the missing ones of `names` behind its last id, or None when none is missing."""
    from tokenizers import AddedToken, Tokenizer

    missing = list(dict.fromkeys(name for name in names if find(core, name) is None))
    if not missing:
        return None
    copy = Tokenizer.from_str(core.to_str())
    copy.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in missing])
    return copy


def set_apart(core: Any, folder: Path, settings: Mapping[str, Any]) -> None:
    """Register the special tokens of a published folder without tokenizer.json: those its files name, and known names.

    `settings` is its tokenizer_config.json. Raises UserError where a token cannot have the folder's id for it.
    """
    from tokenizers import AddedToken

    vocab = core.get_vocab()

    def token_of(name: str, entry: Any = None) -> AddedToken:
        entry = entry if isinstance(entry, dict) else {}
        strip = {side: bool(entry.get(side)) for side in ("lstrip", "rstrip")}
        return AddedToken(name, special=entry.get("special", True), normalized=entry.get("normalized", False), **strip)

    def entries_of(file: str) -> dict[str, Any]:
        path = folder / file
        return load_json(path, dict) if path.exists() else {}

    # In this order, as each further file says more about a token than the one before.
    known = [name for names in (*ALIASES, SEPARATORS) for name in names if name in vocab]
    tokens = {name: (vocab[name], token_of(name)) for name in known}
    tokens |= {name: (i, token_of(name)) for name, i in entries_of("added_tokens.json").items()}
    for entry in entries_of("special_tokens_map.json").values():
        name = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(name, str) and name in vocab:
            tokens[name] = vocab[name], token_of(name, entry)
    for i, entry in settings.get("added_tokens_decoder", {}).items():
        tokens[entry["content"]] = int(i), token_of(entry["content"], entry)
    # By ascending id: the library numbers new tokens one after another.
    core.add_tokens([token for _, token in sorted(tokens.values(), key=lambda pair: pair[0])])
    wrong = [name for name, (i, _) in tokens.items() if core.token_to_id(name) != i]
    check(not wrong, f"{folder}: its files give {', '.join(wrong[:8])} ids that leave gaps behind the vocabulary")


def special_ids(core: Any) -> list[int]:
    """List the ids of special tokens: the marked ones, and every known name (vocab.json marks none)."""
    marked = {i for i, token in core.get_added_tokens_decoder().items() if token.special}
    known = {core.token_to_id(name) for names in (*ALIASES, SEPARATORS) for name in names}
    return sorted(marked | (known - {None}))
