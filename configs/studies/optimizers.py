"""Which optimizer is best when each has its own learning rate?

    python -m launch.sweep --study=optimizers --go

Each optimizer searches one grid of learning rates on a seed and held-out half of its own, then trains with the study's seeds.
"""

from configs.studies import small
from lm.studies.arms import grid
from lm.studies.study import Budget, Study, Tune


def study(seeds: int = 4, steps: int = 300) -> Study:
    return Study(
        question="Which optimizer reaches the lowest loss in equal steps, each at its best learning rate?",
        arms=grid(small("gpt_nano", steps), {"optimizer.name": ("adamw", "lion", "muon", "adafactor", "lamb")}),
        seeds=seeds,
        budget=Budget(steps=steps),
        tune=Tune(values=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    )
