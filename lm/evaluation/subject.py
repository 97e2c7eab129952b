"""The evaluated model with its scorer and writer, built once for all tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lm.config import Config
from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.score import Pair, Scored, Scorer
from lm.decode.writer import Writer
from lm.evaluation.metrics.statistics import Figures
from lm.objectives.base import Objective

Progress = Callable[[str, int], Callable[[int], None]]  # (noun, count) -> callback that advances by n


def silent(noun: str, count: int) -> Callable[[int], None]:
    return lambda done: None


@dataclass(frozen=True)
class Subject:
    """An evaluated model: config, parameters, tokenizer, and the folder of its run. `tokens`: capacity of one forward pass."""

    config: Config
    params: Any
    tokenizer: Tokenizer
    seed: int = 0
    tokens: int = 8192
    workdir: Path | None = None
    progress: Progress = field(default=silent, repr=False)

    @property
    def objective(self) -> Objective:
        return self.config.objective

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.objective, self.params, self.tokens)

    @functools.cached_property
    def writer(self) -> Writer:
        return Writer(self.objective, self.params, self.tokenizer)

    def score(self, noun: str, pairs: Sequence[Pair]) -> list[Scored]:
        """Score pairs with a progress bar labelled `noun`."""
        return self.scorer(pairs, self.progress(noun, len(pairs)))

    def prompt(self, text: str) -> Prompt:
        """Encode a text as a prompt of the objective."""
        return self.writer.objective.prompt(self.tokenizer, text)


class Task(Protocol):
    """An evaluation task: a frozen dataclass whose fields are its file and options."""

    def measure(self, subject: Subject) -> Figures:
        """Measure a model; raises UserError for a malformed file or a model without the task's capability."""
