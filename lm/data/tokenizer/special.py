"""Special tokens: the names that published vocabularies give to the same thing, and how missing ones are added."""

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


def set_apart(core, folder: Path, settings: Mapping[str, Any]) -> None:
    """Set apart the tokens that a published folder without tokenizer.json does: those its files name, else known names.

    `settings` is its tokenizer_config.json. Raises UserError where a token cannot have the id that the folder gives it.
    """
    from tokenizers import AddedToken

    vocab = core.get_vocab()

    def added(name: str, said: Any = None) -> AddedToken:
        said = said if isinstance(said, dict) else {}
        strip = {side: bool(said.get(side)) for side in ("lstrip", "rstrip")}
        return AddedToken(name, special=said.get("special", True), normalized=said.get("normalized", False), **strip)

    def said_by(file: str) -> dict[str, Any]:
        path = folder / file
        return load_json(path, dict) if path.exists() else {}

    known = [name for names in (*ALIASES, SEPARATORS) for name in names if name in vocab]
    found = {name: (vocab[name], added(name)) for name in known}
    found |= {name: (i, added(name)) for name, i in said_by("added_tokens.json").items()}
    for one in said_by("special_tokens_map.json").values():
        name = one.get("content") if isinstance(one, dict) else one
        if isinstance(name, str) and name in vocab:
            found[name] = vocab[name], added(name, one)
    for i, one in settings.get("added_tokens_decoder", {}).items():
        found[one["content"]] = int(i), added(one["content"], one)
    core.add_tokens([token for _, token in sorted(found.values(), key=lambda pair: pair[0])])
    wrong = [name for name, (i, _) in found.items() if core.token_to_id(name) != i]
    check(not wrong, f"{folder}: its files give {', '.join(wrong[:8])} ids that leave gaps behind the vocabulary")


def special_ids(core) -> list[int]:
    """List the ids that are no text: what is marked special, and every known name (vocab.json marks none)."""
    marked = {i for i, token in core.get_added_tokens_decoder().items() if token.special}
    known = {core.token_to_id(name) for names in (*ALIASES, SEPARATORS) for name in names}
    return sorted(marked | (known - {None}))
