"""Studies at laptop size: each asks one question, with the shape and the recipe that they share here."""

from lm.config import Config, Every, load
from lm.models.encoder_decoder import EncoderDecoder
from lm.studies.arms import changed

WIDTH, DEPTH = 128, 4  # an encoder-decoder has half the layers on each side


def small(name: str, steps: int, **arguments: object) -> Config:
    """Return a laptop config at 4 x 128 with batches of 8 rows, evaluated five times and saved twice."""
    config = load(name, {"steps": steps, **arguments})
    pair = isinstance(config.objective.model, EncoderDecoder)
    sides = ("encoder.", "decoder.") if pair else ("",)
    model = {"width": WIDTH, "depth": DEPTH // len(sides), "heads": 4}
    fields = {f"objective.model.{side}{field}": value for side in sides for field, value in model.items()}
    every = Every(log=max(1, steps // 50), evaluate=max(1, steps // 5), save=max(1, steps // 2))
    more = {"batch": 8, "schedule.warmup": steps // 10, "every": every, "keep.last": 1, "keep.best": 0}
    return changed(config, fields | more)
