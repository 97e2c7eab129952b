"""Registry of evaluation tasks: `NAME` or `NAME:FILE`, options after a question mark: `choices:arc.jsonl?shots.count=5`.

A task is a frozen dataclass in a file of its own: `path` if it reads a file, its options as fields, the first line of its
docstring as its help, and `measure(subject) -> Figures`. Its line in TASKS makes it known to `lm.evaluate --tasks` and
`--help`, and to `Config.evaluate`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from urllib.parse import parse_qsl

from lm.config import override
from lm.errors import check, unknown
from lm.evaluation.subject import Task

# Entry points, not classes: only the named tasks import their scorers.
TASKS = {
    "validation": "lm.evaluation.validation:Validation",
    "perplexity": "lm.evaluation.perplexity:Perplexity",
    "last_word": "lm.evaluation.perplexity:LastWord",
    "choices": "lm.evaluation.in_context:Choices",
    "answers": "lm.evaluation.in_context:Answers",
    "pairs": "lm.evaluation.probes:Pairs",
    "noise": "lm.evaluation.probes:Noise",
    "texts": "lm.evaluation.texts:Texts",
    "similarity": "lm.evaluation.embeddings:Similarity",
    "retrieval": "lm.evaluation.embeddings:Retrieval",
    "association": "lm.evaluation.embeddings:Association",
    "disturbed": "lm.evaluation.classifier:Disturbed",
    "paraphrased": "lm.evaluation.classifier:Paraphrased",
    "attacked": "lm.evaluation.classifier:Attacked",
    "shifted": "lm.evaluation.classifier:Shifted",
    "calibrated": "lm.evaluation.classifier:Calibrated",
}


def named(tasks: str | Sequence[str]) -> dict[str, Task]:
    """Open tasks, separated by commas in a string; each under its name as written.

    A comma that no task's name follows belongs to an option.
    """
    # "a:x?stride=8,b:y" is two tasks, "shifted:x?prior=0.5,0.5" one.
    parts = re.split(r",(?!\s*[\d.])(?=\s*[a-z_]+(?:[:?,]|$))", tasks) if isinstance(tasks, str) else tasks
    return {part.strip(): open_task(part.strip()) for part in parts if part.strip()}


def label(name: str) -> str:
    """Shorten a task's name to the prefix of its metrics: the stem of its file, else its kind."""
    kind, _, path = name.partition("?")[0].partition(":")
    return Path(path).stem or kind


def open_task(text: str) -> Task:
    """Open one task; raises UserError for an unknown name, option or value."""
    whole, _, options = text.partition("?")
    name, _, path = whole.partition(":")
    if name not in TASKS:
        raise unknown("task", name, sorted(TASKS))
    kind = resolve_name(TASKS[name])
    reads = reads_file(kind)
    check(bool(path) == reads, f"task '{text}': write {name}:FILE" if reads else f"task '{text}': {name} takes no file")
    return override(kind(path=path) if reads else kind(), parse_qsl(options, keep_blank_values=True))


def reads_file(kind: type) -> bool:
    return any(field.name == "path" for field in dataclasses.fields(kind))


def described() -> str:
    """Describe every task for --help: its name, the first line of its docstring, its options with their defaults."""
    lines = []
    for name, entry in TASKS.items():
        kind = resolve_name(entry)
        reads = reads_file(kind)
        line, _, _ = (inspect.getdoc(kind) or "").partition("\n")
        lines.append(f"    {name + ':FILE' * reads:17} {line}")
        options = "&".join(f"{path}={value!r}" for path, value in defaults(kind(path="") if reads else kind()))
        lines += [f"{'':21} ?{options}"] * bool(options)
    return "\n".join(lines)


def defaults(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, default) of a task's options, nested dataclasses included."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from defaults(inner, f"{prefix}{field.name}.")
        elif prefix + field.name != "path":
            yield prefix + field.name, inner
