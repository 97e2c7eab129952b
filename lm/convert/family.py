"""The contract of a family of published models: its config.json, its table of tensors, its heads and leftovers.

A family is one file in `lm.convert.families` and one line in that package's FAMILIES.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm.convert.layouts import Heads
from lm.convert.rules import Rule
from lm.errors import UserError, check, one_line


class Family:
    """Base of the families: three methods and the expressions for tensors that have no rule.

    `copies`: (expression, our leaf): a second name of a tied tensor; with both in a file they must be equal, alone it
    is read. `buffers`: tensors without weights. `ignored`: weights without a counterpart here, reported as left out.
    """

    name: str  # model_type of config.json
    heads: Heads | None  # of fine-tuned models
    copies: tuple[tuple[str, str], ...] = ()

    @property
    def prefix(self) -> str:
        """Prefix of the backbone's tensors in a file with heads; the file of a bare backbone lacks it."""
        raise NotImplementedError

    @property
    def buffers(self) -> str:
        return r"position_ids$|token_type_ids$"

    @property
    def ignored(self) -> str:
        return ""

    def objective(self, settings: Mapping[str, Any]) -> Any:
        """Return the objective that such a model was trained with; UserError names a setting without a counterpart."""
        raise NotImplementedError

    def settings(self, objective: Any) -> dict[str, Any]:
        """Return config.json of an objective's model; UserError names a field that it cannot express."""
        raise NotImplementedError

    def rules(self, objective: Any) -> list[Rule]:
        """Return the two-way table of tensors."""
        raise NotImplementedError

    def fitted(self, objective: Any, leaves: dict[str, Any], pad: int | None) -> tuple[Any, dict[str, Any]]:
        """Adapt objective and parameters to the id of padding before they are written."""
        return objective, leaves

    def unread(self, objective: Any) -> dict[str, np.ndarray]:
        """Return tensors that transformers' classes require but no objective of ours reads."""
        return {}

    def implied(self, objective: Any) -> dict[str, np.ndarray]:
        """Return tensors of theirs for parameters that our network lacks, with the value at which the two are equal.

        Written with that value; a file with another one is refused.
        """
        return {}

    def unplaced(self) -> str:
        """Return the expression of all tensors that need no rule."""
        return "|".join(filter(None, (self.ignored, self.buffers, *(pattern for pattern, _ in self.copies))))


@dataclass(frozen=True)
class Network:
    """The fields of an objective that families read, for a task, of which only the network counts."""

    model: Any
    sentence: str = "none"
    reuse: int = 0
    start: int | None = None
    begin: int | None = None
    end: int | None = None
    pad: int | None = None


LARGEST = 2**31 - 1  # of any size: positions and ids are int32 on the device


def between(low: int, high: int = LARGEST) -> Callable[[Any], bool]:
    """Return a test of integers."""
    return lambda value: type(value) is int and low <= value <= high


def real(low: float, high: float = 1e9) -> Callable[[Any], bool]:
    """Return a test of numbers: NaN is in no range."""
    return lambda value: type(value) in (int, float) and low <= value <= high


def list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test of lists from one of their items."""
    return lambda value: isinstance(value, list) and all(map(test, value))


def text(value: Any) -> bool:
    return isinstance(value, str)


def token(value: Any) -> bool:
    """Test an id, of which "no token" is -1 in some files, or a list of them."""
    return between(-1)(value) or list_of(between(0))(value)


# Valid values of a config.json by the full name of a field: the first pattern that matches, its test, its words.
VALUES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (r"(n|num|encoder|decoder|num_decoder|num_hidden)_layers?", between(1, 10_000), "a whole number from 1 to 10,000"),
    (r"num_labels", between(1, 1_000_000), "a whole number from 1 to 1,000,000"),
    (r"vocab_size|n_token|n_positions|n_ctx|max_position_embeddings|original_max_position_embeddings|tgt_len|n_embd|hidden_size"
     r"|embedding_size|dim|d_(model|embed|ff|kv|inner|head)|n_inner|hidden_dim|intermediate_size|(en|de)coder_ffn_dim|head_dim"
     r"|n_heads?|num_heads|num_(attention|key_value)_heads|(en|de)coder_attention_heads|div_val|sliding_window_pattern",
     between(1), f"a whole number from 1 to {LARGEST:,}"),
    (r"type_vocab_size|mem_len|reuse_len|sliding_window", between(0), f"a whole number from 0 to {LARGEST:,}"),
    (r"clamp_len", between(-1), "a whole number from -1"),
    (r".*_token_id", token, "a token's id"),
    (r".*(dropout|pdrop|dropout_prob|dropout_rate)|dropatt", real(0, 1), "a number from 0 to 1"),
    (r".*_eps|.*_epsilon|initializer_range|init_std|proj_init_std|.*_softcapping", real(0), "a number from 0 to a billion"),
    (r"rope_theta|rope_local_base_freq|query_pre_attn_scalar|factor|low_freq_factor|high_freq_factor", real(1e-6),
     "a number above 0, at most a billion"),
    (r"tie_word_embeddings|scale_embedding|scale_decoder_outputs|final_logits_bias|pre_lnorm|untie_r|same_length"
     r"|proj_share_all_but_first", lambda value: isinstance(value, bool), "true or false"),
    (r"model_type|hidden_act|activation_function|afn|activation|ff_activation|hidden_activation|feed_forward_proj|problem_type"
     r"|position_embedding_type|rope_type|begin", text, "a text"),
    (r"architectures|layer_types", list_of(text), "a list of texts"),
    (r"cutoffs", list_of(between(1)), "a list of whole numbers"),
    (r"tie_projs", list_of(lambda value: isinstance(value, bool)), "a list of true and false"),
    (r"id2label|label2id|rope_(scaling|parameters)|(full|sliding)_attention", lambda value: isinstance(value, dict),
     "an object"),
)  # fmt: skip


def checked(settings: Mapping[str, Any], where: str) -> None:
    """Raise UserError naming the first field of a config.json with a value of another type or out of range; null is valid."""
    for name, value in settings.items():
        rule = next(((test, words) for pattern, test, words in VALUES if re.fullmatch(pattern, name)), None)
        if value is None or rule is None:
            continue
        test, words = rule
        check(test(value), f"{where}: {name}={one_line(repr(value), 60)} must be {words}")
        # Names of classes are data: one may be called n_layers.
        if isinstance(value, dict) and not name.endswith(("2label", "2id")):
            checked(value, f"{where}: {name}")


@dataclass
class Fields:
    """A config.json being read: architectural fields are read by name, and values without a counterpart refused by name."""

    settings: Mapping[str, Any]
    where: str = field(default="config.json")

    def get(self, *names: str, default: Any = ...) -> Any:
        """Return the first of the named fields that is present and not null."""
        for name in names:
            if self.settings.get(name) is not None:
                return self.settings[name]
        if default is ...:
            raise UserError(f"{self.where} has no '{names[0]}'")
        return default

    def one_of(self, name: str, known: Mapping[Any, Any], default: Any = ...) -> Any:
        """Translate a value by a table; raise UserError for a value that is not in it."""
        value = self.get(name, default=default)
        if not isinstance(value, str | int) or value not in known:
            raise UserError(f"{self.where}: {name}={value!r} has no counterpart here; known: {', '.join(map(str, known))}")
        return known[value]

    def refuse(self, **plain: Any) -> None:
        """Raise UserError for fields with another value than the plain one, which is also their default."""
        for name, value in plain.items():
            given = self.settings.get(name)
            if given is not None and given != value:
                raise UserError(f"{self.where}: {name}={given!r} has no counterpart here")

    def sizes(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Read the fields that a family only calls by other names: ours to theirs."""
        return {ours: self.get(theirs) for ours, theirs in names.items()}


def written(config: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the entries of config.json for `Fields.sizes`, the usual values in place of 0."""
    actual = {"kv_heads": "kv", "head": "head_size", "mlp": "mlp_size", "embed": "embed_size"}
    return {theirs: getattr(config, actual.get(ours, ours)) for ours, theirs in names.items()}


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def name_of(activation: str) -> str:
    """Return transformers' name of an activation."""
    name = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}.get(activation)
    check(name is not None, f"their config.json has no name for the activation '{activation}'")
    return name


def canonical(name: str, family: Family, known: set[str]) -> str | None:
    """Return the table's name of a file's tensor; None for one that needs no rule.

    Old files have gamma and beta, bare backbones lack the prefix, wrapped models have one more.
    """
    name = re.sub(r"(?<=norm)\.(gamma|beta)$", lambda m: {"gamma": ".weight", "beta": ".bias"}[m[1]], name, flags=re.I)
    name = name.removeprefix("module.")
    # The exact name first: a prefix is added or removed only where that alone makes the name a known one.
    for candidate in (name, family.prefix + name, name.removeprefix("model."), name.removeprefix(family.prefix)):
        if candidate in known:
            return candidate
    return None if re.search(family.unplaced(), name) else name


def architecture(settings: Mapping[str, Any]) -> str:
    """Return the first entry of `architectures` in a folder's config.json, "" where it has none."""
    names = settings.get("architectures") or []
    right = isinstance(names, list) and all(isinstance(name, str) for name in names)
    check(right, f"config.json: architectures={one_line(repr(names), 60)} must be a list of names")
    return names[0] if names else ""
