"""Length extrapolation: held-out loss of running text in windows longer than those of training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from lm.data.corpus.prepare import prepare
from lm.data.rows.prompts import Prompt
from lm.data.types import labelled
from lm.decode.score import Pair
from lm.errors import check, check_range
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide
from lm.evaluation.subject import Subject
from lm.models.positions import context_of


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Loss on the run's held-out text in windows of several times the training length: how far positions extrapolate.

    `x4/loss` is the mean in nats per token over windows of 4 x the context that do not overlap, each one segment, whatever
    documents it holds; every length scores the same text, up to `tokens` tokens of it, but for the first token of each window.
    A table of positions (learned) ends at its context: longer windows have no figure. Press et al. 2022, section 2.2.
    """

    multiples: tuple[int, ...] = (1, 2, 4)
    tokens: int = 16384

    def __post_init__(self):
        check(bool(self.multiples) and min(self.multiples) > 0, f"multiples={self.multiples}: give positive whole numbers")
        check_range(self, 1, float("inf"), "tokens")

    def measure(self, subject: Subject) -> Figures:
        objective, data = subject.writer.objective, subject.config.data
        check(objective.writes == "text", f"{type(objective).__name__} does not write from left to right")
        check(not labelled(data.source), "this run reads labelled examples, not running text")
        context = objective.model.context
        longest = context * int(np.lcm.reduce(self.multiples))
        # The context of other positions than a table bounds the lengths of training alone: it may grow here.
        if context_of(objective.model) == "table":
            lengths = [context for multiple in self.multiples if multiple == 1]
        else:
            lengths = [multiple * context for multiple in self.multiples]
            subject = stretched(subject, longest)
        stream = np.array(prepare(data).validation.tokens[: self.tokens], np.int32)
        # A whole number of the longest windows, so that all lengths cover the same text.
        stream = stream[: len(stream) // longest * longest]
        check(len(stream) > 0, f"the held-out text has fewer than {longest} tokens: hold out more, or take smaller multiples")
        figures: Figures = {}
        for size in lengths:
            pairs = [Pair(Prompt(ids[:1]), ids[1:]) for ids in stream.reshape(-1, size)]
            scored = subject.score(f"windows of {size}", pairs)
            sums = np.array([[-one.logprobs.sum(dtype=float), len(one.logprobs)] for one in scored])
            formula = {f"x{size // context}/loss": lambda s: divide(s[..., 0], s[..., 1])}
            figures |= bootstrap_sums(sums, formula, subject.seed)
        return figures


def stretched(subject: Subject, context: int) -> Subject:
    """Return the subject with a longer context of its network, whose parameters do not depend on it."""
    objective, params = subject.objective.writer(subject.params)
    objective = dataclasses.replace(objective, model=dataclasses.replace(objective.model, context=context))
    return dataclasses.replace(subject, config=dataclasses.replace(subject.config, objective=objective), params=params)
