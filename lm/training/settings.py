"""Settings of the optimizer, its schedule, the mesh, and of when a run logs, measures and saves; loads without jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lm.errors import check, check_choices, check_range
from lm.training.dp_budget import Private
from lm.training.parameters import Groups


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each mesh axis; one of them may be -1: all remaining devices."""

    data: int = -1  # rows
    stage: int = 1  # consecutive layers, between which rows pass (GPipe); rows elsewhere
    fsdp: int = 1  # rows, and parameters, gathered layer by layer
    tensor: int = 1  # heads, feed-forward columns and vocabulary
    context: int = 1  # tokens of a row
    expert: int = 1  # experts of a mixture; rows where there are none


@dataclass(frozen=True, kw_only=True)
class Every:
    """Steps between two logs, evaluations, saves, samples; 0: never. The last step has all three (samples not at 0)."""

    log: int = 50  # training figures
    evaluate: int = 1000  # held-out figures and tasks
    save: int = 1000  # a checkpoint
    sample: int = 0  # texts, or predictions for held-out rows


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Checkpoints kept on disk: the `last` newest, and the `best` by the held-out loss or `Config.stop.metric`."""

    last: int = 2
    best: int = 1

    def __post_init__(self):
        check_range(self, 0, float("inf"), "last", "best")


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Place of a run in Weights & Biases, where `Config.wandb` logs to it."""

    project: str = "lm"  # that the run is listed in
    group: str = ""  # of runs that belong together, such as the seeds of one arm
    tags: tuple[str, ...] = ()  # to filter runs by
    entity: str = ""  # user or team; empty: the account's default


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Update rule; `lr` is the peak that the schedule scales. A rule ignores the fields of others.

    `decay` is decoupled weight decay, times the learning rate, on matrices only: a parameter with an "embed" axis and at
    least one more. `clip` bounds the global gradient norm (0: off). `average` is the decay of an exponential moving
    average of the parameters, which evaluation and generation then use (0: none).
    """

    name: Literal["adamw", "adamw_bert", "lamb", "adafactor", "lion", "muon", "sgd"] = "adamw"  # update rule
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the first and second moment
    eps: float = 1e-8  # added to the denominator
    momentum: float = 0.9  # of muon and sgd
    decay: float = 0.0
    clip: float = 0.0
    average: float = 0.0
    groups: Groups = Groups()
    private: Private = Private()

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "lr", "decay", "clip")
        check_range(self, 0, 1, "average", "momentum")
        check(all(0 <= b < 1 for b in self.betas), f"betas={self.betas} must be at least 0 and below 1")
        check(0 < self.eps < float("inf"), f"eps={self.eps} must be positive")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factor over steps: linear warm-up over `warmup` steps, then the shape, down to `final` x peak at
    `steps`, one past the last update.

    `decay` is the length of the last phase of "wsd" (warm-up, stable, decay) as a share of all steps.
    """

    shape: Literal["constant", "linear", "linear_bert", "cosine", "rsqrt", "flat_rsqrt", "wsd"] = "constant"  # after warm-up
    warmup: int = 0
    final: float = 0.0
    decay: float = 0.2

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "warmup")
        check(0 <= self.final <= 1, f"final={self.final} must be from 0 to 1")
        check(0 <= self.decay <= 1, f"decay={self.decay} must be from 0 to 1")


class Run(Protocol):
    """The fields of `lm.config.Config` that the state of a run depends on: configs lie above this room."""

    @property
    def objective(self) -> Any: ...
    @property
    def data(self) -> Any: ...
    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def batch(self) -> int: ...
    @property
    def seed(self) -> int: ...
