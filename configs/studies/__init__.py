"""Studies at laptop size: each asks one question, with the shape and the recipe that they share here."""

from lm.config import Config, Every, load
from lm.studies.arms import changed

WIDTH, DEPTH = 128, 4


def small(name: str, steps: int, **arguments: object) -> Config:
    """Return a laptop config at 4 x 128 with batches of 8 rows, evaluated five times and saved twice."""
    config = load(name, {"steps": steps, **arguments})
    model = {"width": WIDTH, "depth": DEPTH, "heads": 4}
    fields = {f"objective.model.{field}": value for field, value in model.items()}
    every = Every(log=max(1, steps // 50), evaluate=max(1, steps // 5), save=max(1, steps // 2))
    return changed(
        config, {**fields, "batch": 8, "schedule.warmup": steps // 10, "every": every, "keep.last": 1, "keep.best": 0}
    )
