"""The classifier of classify_nano, with two dropout passes that must agree (R-Drop) and adversarial vectors of tokens.

    python -m lm.objectives.regularised
    python -m lm.main --config=configs/regularised_nano.py:text=reviews.csv,label=stars,start=HF_DIR
    python -m lm.main --config=configs/regularised_nano.py --config.objective.rdrop=0 --config.objective.climbs=3

A step costs four passes of the plain one. The weight of R-Drop is 1 to 5 in its paper; a radius is to be tuned beside the
norm of a text's vectors.
"""

import dataclasses
from pathlib import Path

from lm.config import Config, load
from lm.objectives.regularised import Regularised


def config(text: str | None = None, label: str = "label", start: str | None = None, steps: int = 600) -> Config:
    named = {"text": text, "label": label, "start": start, "steps": steps}
    argument = ",".join(f"{name}={value}" for name, value in named.items() if value is not None)
    plain = load(f"{Path(__file__).with_name('classify_nano.py')}:{argument}")
    return dataclasses.replace(plain, objective=Regularised(objective=plain.objective, rdrop=1.0, adversarial=1.0))
