"""How many tokens should a masked language model mask?

    python -m launch.sweep --study=masking --go

Rates from 10 to 60 % (Wettig et al. 2023). Losses of two rates measure two things, so the arms are judged by fine-tuning: the
package that a paragraph of Python's documentation is from.
"""

from configs.studies import small
from lm.config import load
from lm.studies.arms import changed, grid
from lm.studies.study import Budget, Study


def study(seeds: int = 4, steps: int = 500, tuning: int = 150) -> Study:
    config = changed(small("bert_nano", steps, system="roberta"), {"objective.model.positions": "rotary"})
    topic = changed(
        load("classify_nano", {"steps": tuning}), {"optimizer.lr": 1e-3, "every.evaluate": tuning, "every.sample": 0}
    )
    return Study(
        question="Which share of masked tokens gives the network that is best to fine-tune?",
        arms=grid(config, {"objective.rate": (0.15, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}),
        seeds=seeds,
        budget=Budget(steps=steps),
        downstream={"topic": topic},
        metrics=("topic/eval/validation/accuracy", "topic/eval/validation/loss"),
    )
