"""What is measured: a model and everything that asks it something, made once for all tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.score import Pair, Scored, Scorer
from lm.decode.writer import Writer
from lm.evaluation.metrics.statistics import Figures

Progress = Callable[[str, int], Callable[[int], None]]  # (what, how many) -> told of each part that is done


def silent(what: str, count: int) -> Callable[[int], None]:
    """Show nothing."""
    return lambda done: None


@dataclass(frozen=True)
class Subject:
    """A model under test: its run's config, parameters and tokenizer, and where the run lies. `tokens`: computed together."""

    config: Any
    params: Any
    tokenizer: Tokenizer
    seed: int = 0
    tokens: int = 8192
    workdir: Path | None = None
    progress: Progress = field(default=silent, repr=False)

    @property
    def objective(self) -> Any:
        return self.config.objective

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.objective, self.params, self.tokens)

    @functools.cached_property
    def writer(self) -> Writer:
        return Writer(self.objective, self.params, self.tokenizer)

    def score(self, what: str, pairs: Sequence[Pair]) -> list[Scored]:
        """Score pairs, with a progress bar of that name."""
        return self.scorer(pairs, self.progress(what, len(pairs)))

    def prompt(self, text: str) -> Prompt:
        """Make the prompt of a text as the objective asks for it."""
        return self.writer.objective.prompt(self.tokenizer, text)


class Task(Protocol):
    """A source, how to ask, and how to measure: a frozen value like all of a config."""

    def measure(self, subject: Subject) -> Figures:
        """Give the task's figures; raises UserError for a file that does not fit or a model that cannot be asked."""
