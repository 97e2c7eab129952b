"""Registry of evaluation tasks: `NAME` or `NAME:FILE`, options after a question mark: `choices:arc.jsonl?shots.count=5`.

A task is a frozen dataclass in a file of its own: `path` if it reads a file, its options as fields, the first line of its
docstring as its help, and `measure(subject) -> Figures`. Its line in TASKS makes it known to `lm.evaluate --tasks` and
`--help`, and to `Config.evaluate`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from lm.config import override
from lm.errors import check, unknown

if TYPE_CHECKING:
    from lm.evaluation.subject import Task

# Entry points, not classes: only the named tasks import their scorers.
TASKS = {
    "validation": "lm.evaluation.validation:Validation",
    "perplexity": "lm.evaluation.perplexity:Perplexity",
    "lengths": "lm.evaluation.lengths:Lengths",
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
    """Describe every task for --help: its name, the first line of its docstring, its options with their defaults.

    Read from the sources: importing the tasks would start jax, which takes longer than --help may.
    """
    lines = []
    for name, entry in TASKS.items():
        module, _, kind = entry.partition(":")
        node, options = source_of(module, kind), dict(defaults(module, kind))
        line, _, _ = (ast.get_docstring(node) or "").partition("\n")
        lines.append(f"    {name + ':FILE' * ('path' in options):17} {line}")
        shown = "&".join(f"{path}={value}" for path, value in options.items() if path != "path")
        lines += [f"{'':21} ?{shown}"] * bool(shown)
    return "\n".join(lines)


@functools.cache
def parsed(module: str) -> dict[str, ast.ClassDef | str]:
    """Parse a module without running it: its classes, and for imported names their modules."""
    spec = importlib.util.find_spec(module)
    tree = ast.parse(Path(spec.origin if spec and spec.origin else module).read_text(encoding="utf-8"))
    found: dict[str, ast.ClassDef | str] = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return found | {alias.name: node.module or "" for node in imports for alias in node.names}


def source_of(module: str, kind: str) -> ast.ClassDef:
    """Return the parsed class, wherever the module has it from."""
    found = parsed(module)[kind]
    return found if isinstance(found, ast.ClassDef) else source_of(found, kind)


def defaults(module: str, kind: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, default as written) of a task's options: inherited ones first, those of nested classes included."""
    node = source_of(module, kind)
    for base in map(ast.unparse, node.bases):
        if base in parsed(module):
            yield from defaults(module, base, prefix)
    for field in node.body:
        if isinstance(field, ast.AnnAssign):
            path, value = prefix + ast.unparse(field.target), field.value
            factory = [key.value for key in value.keywords] if isinstance(value, ast.Call) else []
            if factory:
                yield from defaults(module, ast.unparse(factory[0]), f"{path}.")
            else:
                yield path, "" if value is None else ast.unparse(value)
