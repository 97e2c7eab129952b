"""Evaluation tasks of a run in training: tried on shapes before the first step, measured between steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm.config import Config
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.score import Pair, Scored
from lm.errors import UserError
from lm.evaluation.registry import label
from lm.evaluation.subject import Subject, Task


class NetworkNeeded(Exception):
    """A rehearsed task has read its file and calls the network."""


class Rehearsal(Subject):
    """A subject of abstract parameters: a task can read and encode its file, but not score."""

    def score(self, what: str, pairs: Sequence[Pair]) -> list[Scored]:
        raise NetworkNeeded


def rehearse(config: Config, params: Any, tokenizer: Tokenizer, tasks: Mapping[str, Task]) -> None:
    """Read and encode the files of all tasks, `params` abstract; raises UserError for the first that is wrong."""
    subject = Rehearsal(config, params, tokenizer, seed=config.seed)
    for name, task in tasks.items():
        if not getattr(task, "path", ""):  # the run's own held-out text is open already
            continue
        try:
            task.measure(subject)
        except UserError as error:
            raise UserError(f"evaluate={name}: {error}") from error
        except OSError:
            raise
        except Exception:  # the network was called, and there is none: everything before that call is in order
            continue


def measured(config: Config, params: Any, tokenizer: Tokenizer, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Measure tasks: `eval/NAME/METRIC`."""
    subject = Subject(config, params, tokenizer, seed=config.seed)
    figures = {label(name): task.measure(subject) for name, task in tasks.items()}
    return {f"eval/{name}/{metric}": figure.value for name, each in figures.items() for metric, figure in each.items()}
