"""Differences between the config of a network and that of a published family, and the wording of refusals."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from lm.models.positions import context_of

# Fields of training and computation, not of the function: they need no counterpart in config.json.
TRAINING = {"dropout", "attention_dropout", "mlp_dropout", "position_dropout", "last_dropout", "init", "init_positions",
            "init_projections", "init_scale_depth", "init_fan_in", "init_truncate", "lora", "adapter", "pad_vocab", "dtype",
            "unroll", "remat"}  # fmt: skip
# Fields whose 0, or word, stands for the value of a property.
DERIVED = {"kv_heads": "kv", "head": "head_size", "mlp": "mlp_size", "embed": "embed_size", "scale": "attention_scale",
           "mup_base": "mup", "tied_projections": "ties", "embed_scale": "embed_factor",
           "logit_scale": "logit_factor"}  # fmt: skip


class Difference(NamedTuple):
    """A field that a config.json would lose: its path in the model, our value, the family's."""

    path: str
    ours: Any
    theirs: Any


def differ(ours: Any, theirs: Any, path: str = "") -> list[Difference]:
    """Return the fields in which two models differ."""
    if type(ours) is not type(theirs):
        return [Difference(path.rstrip("."), type(ours).__name__, type(theirs).__name__)]
    differences = []
    for field in dataclasses.fields(ours):
        name, a, b = field.name, getattr(ours, field.name), getattr(theirs, field.name)
        if dataclasses.is_dataclass(a):
            differences += differ(a, b, f"{path}{name}.")
            continue
        # By what the fields come to: a 0 and the value that it stands for are the same network.
        if hasattr(ours, DERIVED.get(name, " ")):
            same = getattr(ours, DERIVED[name]) == getattr(theirs, DERIVED[name])
        elif name == "qkv_bias":
            same = (ours.bias if a is None else a) == (theirs.bias if b is None else b)
        elif name == "context" and context_of(ours) == "free":
            same = True
        else:
            same = a == b or name in TRAINING
        differences += [] if same else [Difference(f"{path}{name}", a, b)]
    return differences


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Format the fields in which two models differ, with the first's values."""
    return [f"{one.path or 'model'}={one.ours!r}" for one in differ(ours, theirs, path)]


def refusal(kind: str, reasons: dict[str, list[Difference] | str], most: int = 2) -> str:
    """Word the refusal of an export: the nearest family, and the fields in which the run would have to change."""
    none = f"no family of published models holds this model ({kind})"
    if not reasons:
        return none
    # A family that raised (its feed-forwards are gated, say) may have further differences.
    nearest = min(reasons, key=lambda name: 100 if isinstance(reasons[name], str) else len(reasons[name]))
    reason = reasons[nearest]
    if isinstance(reason, str):
        return f"{none}; nearest: {nearest}, but {reason}"
    own = [one for one in reason if not (one.path.endswith("qkv_bias") and one.ours is None)]
    own.sort(key=lambda one: one.path.endswith("context"))  # the easiest to change, so the last named
    first = ", ".join(f"objective.model.{one.path}={one.ours!r} (needs {one.theirs!r})" for one in own[:most])
    more = f" and in {len(own) - most} more" if len(own) > most else ""
    return f"{none}; nearest: {nearest}; differs in {first}{more}"
