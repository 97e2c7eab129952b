"""Results of a study: of each arm and seed, its state, sizes, last figures and curve, read from the folders of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Point:
    """One logged step of an arm, counted over all its stages: steps, tokens, FLOPs, seconds of training, and figures."""

    steps: int
    tokens: float
    flops: float
    seconds: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """One arm with one seed: the results of its runs together.

    `steps` to `seconds` are sums over its stages, downstream runs and searches left out. `figures`: the last value of every
    metric; of the last stage by its own name, of a downstream run as NAME/eval/..., of a stage before as stage-1/eval/....
    `quantity`: what the held-out loss measures; losses of different quantities are not comparable. `reason`: the last line of
    a run that failed.
    """

    arm: str
    seed: int
    hash: str  # of the last stage
    state: Literal["done", "failed", "missing", "running"]
    folders: Mapping[str, Path] = field(default_factory=dict)  # run folders by stage: "train", "stage-1", a downstream name
    steps: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    params: int = 0
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Point] = ()
    quantity: str = ""
    reason: str = ""
    tuned: Mapping[str, Any] = field(default_factory=dict)  # field -> value that the search chose
    samples: Sequence[tuple[str, str]] = ()  # (prompt, text) of the last step
