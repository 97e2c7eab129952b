"""Name the quantity that an objective's held-out loss measures: losses of different quantities are never ranked together."""

from __future__ import annotations

from lm.fields import as_text, chosen
from lm.objectives.base import Objective

LIKELIHOOD = "log-likelihood"
# Fields that leave the loss what it is: the network, ids of the tokenizer, and how labelled examples become rows.
APART = {"model", "head", "rows", "pieces", "separator", "start", "begin", "end", "mask", "cls", "sep", "pad"}


def quantity(objective: Objective) -> str:
    """Return "log-likelihood" for the exact one of running text, else the objective's class with its fields.

    A masked objective of another rate has other targets, hence another loss. An objective whose loss is a bound says so in
    `Objective.quantity`.
    """
    objective = objective.measured().inner
    if objective.quantity or objective.nats == "loss":
        return objective.quantity or LIKELIHOOD
    fields = ", ".join(
        f"{field.name}={as_text(getattr(objective, field.name))}" for field in chosen(objective) if field.name not in APART
    )
    return f"{type(objective).__name__}({fields})"
