"""Which position encoding does a small causal model learn best with, and which extrapolates to longer texts?

    python -m launch.sweep --study=positions --go

Six encodings, all else equal; the held-out loss at the training length, and at one to four times that length (Press et al.
2022; Kazemnejad et al. 2023). A learned table ends at the training length, so it has no figure beyond.
"""

from configs.studies import small
from lm.studies.arms import changed, grid
from lm.studies.study import LOSS, Budget, Study


def study(seeds: int = 3, steps: int = 400) -> Study:
    config = changed(small("gpt_nano", steps), {"evaluate": ("lengths",)})
    encodings = ("learned", "sinusoidal", "rotary", "alibi", "bucket", "none")
    return Study(
        question="Which position encoding gives the lowest loss, and which keeps it on longer texts?",
        arms=grid(config, {"objective.model.positions": encodings}),
        baseline="positions=rotary",
        seeds=seeds,
        budget=Budget(steps=steps),
        metrics=(LOSS, "eval/lengths/x1/loss", "eval/lengths/x2/loss", "eval/lengths/x4/loss"),
    )
