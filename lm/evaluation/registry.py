"""Tasks by name: `NAME`, or `NAME:FILE`, with options behind a question mark: `choices:arc.jsonl?shots.count=5`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from lm.config import override
from lm.errors import check, unknown
from lm.evaluation import classifier
from lm.evaluation.in_context import Answers, Choices
from lm.evaluation.perplexity import LastWord, Perplexity
from lm.evaluation.probes import Noise, Pairs
from lm.evaluation.subject import Task
from lm.evaluation.texts import Similarity, Texts
from lm.evaluation.validation import Validation

TASKS = {
    "validation": Validation,
    "perplexity": Perplexity,
    "last_word": LastWord,
    "choices": Choices,
    "answers": Answers,
    "pairs": Pairs,
    "noise": Noise,
    "texts": Texts,
    "similarity": Similarity,
    **classifier.TASKS,
}


def named(tasks: str | Sequence[str]) -> dict[str, Task]:
    """Read tasks, joined by commas where they are one string; each under the name that was given.

    A comma that no task's name follows belongs to an option.
    """
    parts = re.split(r",(?!\s*[\d.])(?=\s*[a-z_]+(?:[:?,]|$))", tasks) if isinstance(tasks, str) else tasks
    return {part.strip(): one(part.strip()) for part in parts if part.strip()}


def label(name: str) -> str:
    """Shorten a task's name to what metrics are called: its file's stem, else its kind."""
    kind, _, path = name.partition("?")[0].partition(":")
    return Path(path).stem or kind


def one(text: str) -> Task:
    """Read one task; raises UserError for an unknown name, option or value."""
    whole, _, options = text.partition("?")
    name, _, path = whole.partition(":")
    if name not in TASKS:
        raise unknown("task", name, sorted(TASKS))
    kind = TASKS[name]
    wanted = any(field.name == "path" for field in dataclasses.fields(kind))
    check(bool(path) == wanted, f"task '{text}': write {name}:FILE" if wanted else f"task '{text}': {name} takes no file")
    return override(kind(path=path) if wanted else kind(), parse_qsl(options, keep_blank_values=True))
