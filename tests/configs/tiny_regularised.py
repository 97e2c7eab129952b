"""The tiny classifier with every term that Regularised has."""

import dataclasses
from pathlib import Path

from lm.config import Config, load
from lm.objectives.regularised import Regularised


def config() -> Config:
    plain = load(str(Path(__file__).with_name("tiny_classify.py")))
    harder = Regularised(objective=plain.objective, rdrop=1.0, adversarial=1.0, smoothness=1.0, radius=0.3)
    return dataclasses.replace(plain, objective=harder)
