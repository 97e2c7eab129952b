"""Are whole words better to mask than characters, for Chinese?

    python -m launch.finetune --tasks=people       # makes the files of the tagging task
    python -m launch.sweep --study=chinese:text=FILE --go

FILE as in configs/bert_wwm_chinese_nano.py: the People's Daily of 1998 with its words. Cui et al. 2021 mask whole words but
predict characters. Losses of the two have different targets, so the arms are judged on one task: tagging the names of people,
places and organisations.
"""

from configs.studies import small
from lm.config import load
from lm.studies.arms import changed, grid
from lm.studies.study import Budget, Study


def study(text: str, seeds: int = 6, steps: int = 500, tuning: int = 200) -> Study:
    config = changed(small("bert_wwm_chinese_nano", steps, text=text), {"objective.model.positions": "rotary"})
    names = changed(load("tag_people", {"steps": tuning}), {"every.evaluate": tuning, "every.sample": 0})
    return Study(
        question="Does masking whole words give a better network for Chinese names than masking characters?",
        arms=grid(config, {"objective.unit": ("token", "word")}),
        seeds=seeds,
        budget=Budget(steps=steps),
        downstream={"names": names},
        metrics=("names/eval/validation/examples/f1", "names/eval/validation/loss"),
    )
