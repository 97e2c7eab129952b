"""A study of one's own, as lm/studies/README.md shows it."""

from lm.config import load
from lm.studies.arms import grid
from lm.studies.study import Budget, Study, Tune


def study(seeds: int = 5, steps: int = 300) -> Study:
    arms = grid(load("gpt_nano"), {"objective.model.activation": ("gelu", "swiglu", "relu2")})
    return Study(arms=arms, seeds=seeds, budget=Budget(steps=steps), tune=Tune(values=(2e-3, 4e-3, 8e-3)))
