"""Where should the norms stand: before the sub-layers, after them, or both?

    python -m launch.sweep --study=norms --go

Placement over depth and learning rate (Xiong et al. 2020), with AdamW and hardly any warm-up, where the three differ most.
"""

from configs.studies import small
from lm.studies.arms import changed, grid
from lm.studies.study import Budget, Study


def study(seeds: int = 2, steps: int = 200) -> Study:
    config = changed(small("gpt_nano", steps), {"optimizer.name": "adamw", "schedule.warmup": 5, "objective.model.width": 64})
    fields = {
        "objective.model.placement": ("pre", "post", "sandwich"),
        "objective.model.depth": (4, 12),
        "optimizer.lr": (1e-3, 3e-3, 1e-2),
    }
    return Study(
        question="Which placement of the norms trains at which depth and learning rate?",
        arms=grid(config, fields),
        seeds=seeds,
        budget=Budget(steps=steps),
    )
