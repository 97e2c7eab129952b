"""Early stopping: which held-out figure says whether a run still learns, and for how long it has not."""

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
    the checkpoints that `keep.best` counts, without patience too. `mode`: whether less is better; "auto": of losses and
    errors (LOWER), of all others more. A figure that is better by no more than `least` does not begin the patience anew.
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
        """1 where less is better, -1 where more is."""
        lower = self.metric.rpartition("/")[2] in LOWER if self.mode == "auto" else self.mode == "min"
        return 1 if lower else -1

    @property
    def watched(self) -> str:
        """What the counters in a checkpoint's notes are of."""
        return f"{'min' if self.sign > 0 else 'max'} {self.metric}"

    def rank(self, figures: Mapping[str, float]) -> tuple[float, float]:
        """Order checkpoints by their figures, the best first; of equal ones the earlier, behind them those without it."""
        value = figures.get(self.metric, math.nan)
        return math.inf if math.isnan(value) else self.sign * value, figures.get("step", math.inf)

    def check_beside(self, evaluate: int, best: int) -> None:
        """Raise UserError where patience has nothing to count or nothing to go back to."""
        check(not self.patience or evaluate > 0, "stop.patience counts evaluations: set every.evaluate above 0")
        check(not self.patience or best > 0, "stop.patience ends with the best checkpoint: set keep.best above 0")


class Watch:
    """Follows the figure of one run; `notes` of a checkpoint give back what was seen until then."""

    def __init__(self, rule: EarlyStop, notes: Mapping[str, Any]):
        """Go on from the notes; a run that watched another figure, or none, begins to count anew."""
        known = notes if notes.get("watched", "min loss") == rule.watched else {}
        worst = rule.sign * math.inf
        self.rule = rule
        self.best: float = known.get("best", worst)
        self.mark: float = known.get("mark", worst)  # the last figure that began the patience anew, and its step
        self.since: int = known.get("since", 0)
        self.waited: int = known.get("waited", 0)

    def see(self, step: int, figures: Mapping[str, float]) -> bool:
        """Count one evaluation; tell whether its figure is the best so far."""
        if self.rule.metric not in figures:
            raise unknown("stop.metric", self.rule.metric, list(figures))
        value, sign = figures[self.rule.metric], self.rule.sign
        self.waited += 1
        if sign * self.mark - sign * value > self.rule.least:
            self.mark, self.since, self.waited = value, step, 0
        better = sign * value < sign * self.best
        self.best = value if better else self.best
        return better

    @property
    def over(self) -> bool:
        """Tell whether patience is at its end."""
        return 0 < self.rule.patience <= self.waited

    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"watched": self.rule.watched, **{n: getattr(self, n) for n in ("best", "mark", "since", "waited")}}

    def reason(self) -> str:
        """Say why the run is over."""
        more = f" by more than {self.rule.least:g}" if self.rule.least else ""
        count = f"{self.waited} evaluation{'s' * (self.waited != 1)}"
        return f"eval/validation/{self.rule.metric} has not improved{more} on {self.mark:.6g} of step {self.since} for {count}"
