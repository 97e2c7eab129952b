"""Early stopping: the held-out figure that ranks checkpoints, and the patience that ends a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lm.errors import check, check_choices, check_range, unknown

# Last parts of the names of figures that are better when lower.
LOWER = {"loss", "perplexity", "bits_per_byte", "error", "mae", "mse", "brier", "nll", "ece", "ece_mass", "mce", "hamming"}


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """End a run whose held-out figure gets no better, and take the checkpoint with the best one as its result.

    `patience`: evaluations in a row without a better figure before the end; 0: the run takes all its steps, and its newest
    checkpoint is its result. `metric`: the figure, by its name behind eval/validation/ ("loss", "examples/f1"); it ranks
    the checkpoints that `keep.best` counts, without patience too. `mode`: "min" or "max" is better; "auto": min for losses
    and errors (LOWER), max for all others. An improvement of `least` or less does not reset the patience.
    """

    patience: int = 0
    metric: str = "loss"
    mode: Literal["auto", "min", "max"] = "auto"
    least: float = 0.0

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, math.inf, "patience", "least")
        check(bool(self.metric), "stop.metric is empty: name a figure, loss or examples/f1")

    @property
    def sign(self) -> int:
        """Return 1 where lower is better, -1 where higher is."""
        lower = self.metric.rpartition("/")[2] in LOWER if self.mode == "auto" else self.mode == "min"
        return 1 if lower else -1

    @property
    def watched(self) -> str:
        """Identify the figure and its direction, as a checkpoint's notes keep it beside the counters."""
        return f"{'min' if self.sign > 0 else 'max'} {self.metric}"

    def rank(self, figures: Mapping[str, float]) -> tuple[float, float]:
        """Sort key of checkpoints: the best first, of equals the earlier, last any without the figure."""
        value = figures.get(self.metric, math.nan)
        return math.inf if math.isnan(value) else self.sign * value, figures.get("step", math.inf)

    def check_beside(self, evaluate: int, best: int) -> None:
        """Raise UserError where patience has no evaluation to count or no checkpoint to return to."""
        check(not self.patience or evaluate > 0, "stop.patience counts evaluations: set every.evaluate above 0")
        check(not self.patience or best > 0, "stop.patience ends with the best checkpoint: set keep.best above 0")


class Watch:
    """The figure of one run over its evaluations; its counters live in the notes of checkpoints."""

    def __init__(self, rule: EarlyStop, notes: Mapping[str, Any]):
        """Resume from the notes; where they hold another figure, or none, start counting at zero."""
        known = notes if notes.get("watched", "min loss") == rule.watched else {}
        worst = rule.sign * math.inf
        self.rule = rule
        self.best: float = known.get("best", worst)
        self.mark: float = known.get("mark", worst)  # the last figure that reset the patience; `since`: its step
        self.since: int = known.get("since", 0)
        self.waited: int = known.get("waited", 0)

    def see(self, step: int, figures: Mapping[str, float]) -> bool:
        """Count one evaluation; return whether its figure is the best so far."""
        if self.rule.metric not in figures:
            raise unknown("stop.metric", self.rule.metric, list(figures))
        value, sign = figures[self.rule.metric], self.rule.sign
        # `mark` moves only by improvements above `least`, `best` by any: ranking must not ignore small ones.
        self.waited += 1
        if sign * self.mark - sign * value > self.rule.least:
            self.mark, self.since, self.waited = value, step, 0
        better = sign * value < sign * self.best
        self.best = value if better else self.best
        return better

    @property
    def over(self) -> bool:
        """Return whether patience is exhausted."""
        return 0 < self.rule.patience <= self.waited

    def notes(self) -> dict[str, Any]:
        """Return the counters for a checkpoint's notes."""
        return {"watched": self.rule.watched, **{n: getattr(self, n) for n in ("best", "mark", "since", "waited")}}

    def reason(self) -> str:
        """Format the reason for the end of the run."""
        more = f" by more than {self.rule.least:g}" if self.rule.least else ""
        count = f"{self.waited} evaluation{'s' * (self.waited != 1)}"
        return f"eval/validation/{self.rule.metric} has not improved{more} on {self.mark:.6g} of step {self.since} for {count}"
