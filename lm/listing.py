"""The fields of a config as text: value, type, and what each is for, read from the sources of the dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from typing import Any, Literal

from lm.fields import UNIONS, as_text, chosen, hints

# Fields that mean the same in every class: one sentence instead of a comment on each.
COMMON = {
    "attention_dropout": "dropout of the attention weights",
    "begin": "id of the token that begins a text; `resolve` sets it",
    "chunk": "tokens a device whose logits are computed at once; 0 chooses",
    "cls": "id of the classification token; `resolve` sets it",
    "context": "longest row in tokens",
    "depth": "number of layers",
    "dropout": "dropout of embeddings and of each sub-layer's output",
    "dtype": "dtype of activations and matrix products; parameters stay float32",
    "end": "id of the token that ends a text; `resolve` sets it",
    "eps": "added to the variance in each norm",
    "field": "key of the text in a record",
    "heads": "attention heads of a layer",
    "init": "standard deviation of initial weights",
    "label": "key of the label in an example",
    "mask": "id of the mask token; `resolve` sets it",
    "modes": "ids of the denoisers' mode tokens; `resolve` sets them",
    "name": "name, as metrics and flags use it",
    "pack": "put as many examples in a row as fit, without attention between them; else one a row",
    "pad": "id of the padding token; `resolve` sets it",
    "path": "file, glob pattern, or several joined by commas",
    "placement": "where the norms stand: before each sub-layer, or after its residual sum",
    "rate": "share of the tokens that are predicted",
    "remat": "activations to compute again in the backward pass: less memory, more time",
    "sentinels": "ids of the sentinel tokens; `resolve` sets them",
    "sep": "id of the token between segments; `resolve` sets it",
    "separator": "id of the token between documents; `resolve` sets it",
    "smoothing": "label smoothing: this share of the probability is spread over the vocabulary",
    "tied": "the vocabulary head shares the embedding table",
    "unknown": "what to do with a held-out label that training has not seen",
    "unroll": "layers compiled one after another, 0: all; more are faster to run and slower to compile",
    "vocab": "number of tokens",
    "width": "width of the residual stream",
    "z_loss": "coefficient of log(Z)^2, which keeps the logits from drifting",
}


def listing(config: object) -> str:
    """List every field of a config: `--config.PATH=VALUE  [type]`, and its sentence."""
    lines = [f"{type(config).__name__}: {summary(type(config))}", ""]
    for name, value, kind, text in fields(config):
        lines.append(f"--config.{name}={value}" + (f"  [{kind}]" if kind else ""))
        lines += textwrap.wrap(text, 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def fields(config: object, path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted path, value, type, sentence) of every field of a dataclass tree; a group comes before its fields."""
    kinds = hints(type(config))
    for field in chosen(config):
        name, value = f"{path}{field.name}", getattr(config, field.name)
        text = sentence(type(config), field.name)
        if dataclasses.is_dataclass(value):
            yield name, type(value).__name__, "", text or summary(type(value))
            yield from fields(value, f"{name}.")
        else:
            yield name, as_text(value) or "''", kind_of(kinds[field.name]), text


def kind_of(kind: object) -> str:
    """Format an annotated type: the choices of a Literal, else its short name."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in UNIONS:
        return " | ".join(kind_of(one) for one in args)
    if origin is tuple:
        inner = kind_of(args[0])
        return f"{inner},..." if args[-1] is Ellipsis else ",".join(map(kind_of, args))
    names: dict[object, str] = {type(None): "none", bool: "true | false", Any: "any"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))


def summary(cls: type) -> str:
    """Return the first sentence of a class's docstring."""
    text = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) (?=[A-Z`])", text)[0]


def sentence(cls: type, name: str) -> str:
    """Return what a field is for: its comment, else the sentence of a docstring that begins with or names it; "" if none.

    Of the class itself first, then of its bases, then of `COMMON`.
    """
    for one in cls.__mro__:
        if one.__module__.startswith("builtins"):
            continue
        if text := _comments(one).get(name):
            return _choices(text)
        if text := _mentioned(inspect.cleandoc(one.__doc__ or ""), name):
            return text
    return COMMON.get(name, "")


def _choices(text: str) -> str:
    """Replace "of lm.module.TABLE" by the names in that table."""
    if match := re.fullmatch(r"of (lm[\w.]*)\.([A-Z_]+)", text):
        return "one of " + ", ".join(getattr(importlib.import_module(match[1]), match[2]))
    return text


def _mentioned(text: str, name: str) -> str:
    """Return the clause of a docstring that names `name` in backticks, up to the next one that names another field."""
    flat = " ".join(text.split())
    parts = re.split(r"(?<=[.;:]) +(?=`)|(?<=\.) +(?=[A-Z])", flat)
    # A clause that begins with the name is about the field; one that only mentions it is the second choice.
    starts = [k for k, part in enumerate(parts) if part.startswith(f"`{name}`") or part.startswith(f"`{name}=")]
    holds = starts or [k for k, part in enumerate(parts) if re.search(rf"`{name}[`=.:( ]", part)]
    return parts[holds[0]].rstrip(" ;") if holds else ""


@functools.cache
def _comments(cls: type) -> dict[str, str]:
    """Map the fields that a class declares to the comments behind them, or on the lines above them."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    # The syntax tree has no comments and the tokens have no structure: the two are joined by line numbers.
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, str] = {}
    (declared,) = ast.parse(source).body
    for node in declared.body if isinstance(declared, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if node.end_lineno in comments and not comments[node.end_lineno][1]:
                found[node.target.id] = comments[node.end_lineno][0]
            else:
                above: list[str] = []
                line = node.lineno - 1
                while line in comments and comments[line][1]:
                    above.insert(0, comments[line][0])
                    line -= 1
                if above:
                    found[node.target.id] = " ".join(above)
    return found
