"""Options as dataclass fields: each carries its help and bounds, and `lm.generate` derives its flags from them.

Nothing here or in `lm.decode.strategies` imports jax at the top: a mistake in a flag is reported before jax starts.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.data.tokenizer.tokenizer import Tokenizer
    from lm.decode.processors import Rules


# Names that transformers has for our options: read as these, in commands and in Python.
ALIASES = {
    "num_return_sequences": "num_samples", "no_repeat_ngram_size": "no_repeat_ngram",
    "encoder_no_repeat_ngram_size": "encoder_no_repeat_ngram", "assistant_model": "draft", "stop_strings": "stop",
    "epsilon_cutoff": "epsilon", "eta_cutoff": "eta", "num_assistant_tokens": "draft_tokens",
}  # fmt: skip


def translated(argv: Sequence[str]) -> list[str]:
    """Replace the names of transformers in a command line; `--do_sample` chooses sampling or greedy search, of beams too."""
    beams = any(re.match(r"-+num_beams\b(?!=1$)", item) for item in argv)
    drawn, likeliest = ("beam_sample", "beam") if beams else ("sample", "greedy")
    found = []
    for item in argv:
        dashes, name, rest = re.fullmatch(r"(-*)(\w*)(.*)", item, re.DOTALL).groups()
        if dashes and name in ALIASES:
            item = f"{dashes}{ALIASES[name]}{rest}"
        elif dashes and name == "do_sample":
            item = f"--strategy={likeliest if rest.lower() in ('=false', '=0') else drawn}"
        found.append(item)
    return found


def option(default: Any, text: str, low: int = 1, high: int = 1_000_000) -> Any:
    """Declare a field that is a flag of the same name; `low` and `high` bound whole numbers."""
    return dataclasses.field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclasses.dataclass
class Flag:
    """A flag, collected from the fields of one name: `uses` maps each strategy to its help text."""

    kind: Any
    low: int
    high: int
    uses: dict[str, str]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Map each help text to the strategies that share it."""
        found: dict[str, list[str]] = {}
        for strategy, text in self.uses.items():
            found.setdefault(text, []).append(strategy)
        return found

    @property
    def text(self) -> str:
        """Join the help texts; strategies that share one are listed before it."""
        return "; ".join(f"{', '.join(names)}: {text}" for text, names in self.groups.items())

    def value(self, given: Any) -> Any:
        """Convert a flag's value to the field's type: switches are written as words, lists become hashable."""
        if bool in (self.kind, *typing.get_args(self.kind)):
            return {"true": True, "false": False}.get(given, given)
        return tuple(given) if isinstance(given, list) else given


def options_of(kind: type) -> dict[str, dataclasses.Field]:
    """Return the fields of a dataclass that were declared by `option`."""
    return {field.name: field for field in dataclasses.fields(kind) if "help" in field.metadata}


def collect_flags(strategies: Mapping[str, type], shared: Mapping[type, Iterable[str]]) -> dict[str, Flag]:
    """Merge the options of all strategies, and of each `shared` class for the strategies that it names."""
    found: dict[str, Flag] = {}
    owners = [(kind, [name]) for name, kind in strategies.items()] + [(kind, list(names)) for kind, names in shared.items()]
    for kind, names in owners:
        hints = typing.get_type_hints(kind)
        for name, field in options_of(kind).items():
            low, high = field.metadata["low"], field.metadata["high"]
            flag = found.setdefault(name, Flag(hints[name], low, high, {}))
            # Only the widest bounds fit every strategy; a narrower one checks its own value.
            flag.low, flag.high = min(flag.low, low), max(flag.high, high)
            default = "" if field.default in ("", ()) else f" (default {str(field.default).lower()})"
            flag.uses |= dict.fromkeys(names, field.metadata["help"] + default)
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraints:
    """Options of every strategy that writes from left to right: `lm.decode.processors.Rules`, with words in place of ids."""

    repetition_penalty: float = option(1.0, "above 1: tokens of the text so far become less likely (CTRL)")
    encoder_repetition_penalty: float = option(1.0, "above 1: tokens of the prompt or source become likelier")
    frequency_penalty: float = option(0.0, "subtracted from a score for each time the token was generated")
    presence_penalty: float = option(0.0, "subtracted from a score if the token was generated at all")
    no_repeat_ngram: int = option(0, "no n tokens in a row come twice", low=0)
    encoder_no_repeat_ngram: int = option(0, "no n tokens in a row of the prompt or source come again", low=0)
    min_new_tokens: int = option(0, "tokens before a text may end", low=0)
    length_penalty_start: int = option(0, "with the factor: tokens after which ending becomes likelier", low=0)
    length_penalty_factor: float = option(1.0, "growth of the probability of ending; above 1")
    bad_words: tuple[str, ...] = option((), "text that must not appear, several allowed")
    forced_prefix: str = option("", "text that the continuation starts with")

    def rules(self, tokenizer: Tokenizer) -> Rules:
        """Encode the words; bad ones are banned at the start of a text and behind a space."""
        from lm.decode.processors import Rules

        spaced = not tokenizer.characters or tokenizer.token_id(" ") is not None
        words = [form for word in self.bad_words for form in ([word, " " + word] if spaced else [word])]
        ids = [tuple(tokenizer.encode(word).tolist()) for word in words]
        same = {name: getattr(self, name) for name in options_of(Constraints) if name not in ("bad_words", "forced_prefix")}
        prefix = tuple(tokenizer.encode(self.forced_prefix).tolist())
        return Rules(**same, bad_words=tuple(dict.fromkeys(filter(None, ids))), forced_prefix=prefix)
