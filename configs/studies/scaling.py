"""How does the held-out loss fall with parameters and tokens?

    python -m launch.sweep --study=scaling --go

Five widths by three numbers of tokens; the report fits L = E + A/N^a + B/D^b (Hoffmann et al. 2022, approach 3). Every run has
a schedule that ends with it.
"""

from configs.studies import small
from lm.studies.arms import axis, grid, together
from lm.studies.study import Study


def study(seeds: int = 1) -> Study:
    steps = (125, 250, 500)
    lengths = {"steps": steps, "schedule.warmup": tuple(one // 10 for one in steps), "every.evaluate": steps}
    widths = axis("objective.model.width", (32, 48, 64, 96, 128))
    return Study(
        question="Which size and number of tokens give the lowest loss for a budget of compute?",
        arms=grid(small("gpt_nano", 500), {}, widths, together(lengths)),
        seeds=seeds,
        scaling="law",
    )
