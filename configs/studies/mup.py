"""Does the best learning rate stay where it is when a network under muP becomes wider?

    python -m launch.sweep --study=mup --go
    python -m launch.sweep --study=mup:mup=no --go

Widths 64 to 512 over learning rates, with muP (Yang et al. 2022) or, for comparison, without; AdamW.
"""

from configs.studies import small
from lm.studies.arms import changed, grid
from lm.studies.study import Budget, Study


def study(seeds: int = 1, steps: int = 150, mup: bool = True, widest: int = 512) -> Study:
    config = changed(small("gpt_nano", steps), {"optimizer.name": "adamw", "objective.model.mup_base": 64 if mup else 0})
    widths = tuple(width for width in (64, 128, 256, 512) if width <= widest)
    rates = tuple(2.0**k for k in (-10, -9, -8, -7, -6, -5))
    return Study(
        name="mup" if mup else "standard",
        question="At which learning rate is the loss lowest, for each width?",
        arms=grid(config, {"objective.model.width": widths, "optimizer.lr": rates}),
        seeds=seeds,
        budget=Budget(steps=steps),
    )
