"""Sources of labelled examples, by the arguments of configs."""

from __future__ import annotations

import re

from lm.data.labelled.cloze import Cloze
from lm.data.labelled.columns import Columns, Entities
from lm.data.labelled.documented import Documented
from lm.data.labelled.files import Labelled
from lm.data.labelled.questions import Questions
from lm.data.labelled.tfds import TfdsExamples
from lm.data.types import ExampleSource, Task
from lm.errors import UserError, check

__all__ = ["Cloze", "Columns", "Documented", "Entities", "Labelled", "Questions", "TfdsExamples", "examples_from",
           "held_out_from"]  # fmt: skip


def examples_from(
    text: str | None, task: Task = "topic", data: str | None = None, field: str = "text", language: str = ""
) -> ExampleSource:
    """Return the source of the config arguments `text=PATH` (a format by its ending) and `data=tfds:NAME[:SPLIT]`.

    `field` and `language` are those of `TfdsExamples`. Without both arguments, Documented examples of the task.
    """
    check(not (text and data), f"text={text} and data={data} both name examples: give one of them")
    if data:
        return _published(data, field, language)
    if text is None:
        return Documented(task=task)
    ending = text.lower().rpartition(".")[2]
    if ending in ("conll", "bio", "iob", "iob2") or (task == "marks" and ending in ("txt", "tsv", "tab")):
        return Columns(path=text)
    if ending == "conllu":  # FORM and UPOS
        return Columns(path=text, word=1, tag=3)
    if ending in ("csv", "tsv", "tab", "jsonl", "ndjson"):
        return Labelled(path=text)
    if ending == "json":
        return Questions(path=text)
    raise UserError(
        f"text={text}: labelled examples come in .csv, .tsv, .jsonl, .conll, .conllu, (questions) .json or (words with tags) "
        ".txt files"
    )


def held_out_from(
    held_out: str | None, task: Task = "topic", field: str = "text", language: str = "", share: float = 0.1
) -> ExampleSource | float:
    """Return the source of the config argument `held_out=PATH|tfds:NAME:SPLIT`, or a share of the training examples."""
    if held_out is None:
        return share
    text, data = (None, held_out) if held_out.startswith("tfds:") else (held_out, None)
    return examples_from(text, task, data, field, language)


def _published(data: str, field: str, language: str) -> TfdsExamples:
    """Parse tfds:NAME[:VERSION][:SPLIT]; a split may be train[:80%], and only a version starts with a digit."""
    found = re.fullmatch(r"tfds:([^:\[\]]+(?::\d[\d.*]*)?)(?::([^\d:].*))?", data)
    if found is None:
        raise UserError(f"data={data}: write data=tfds:NAME or tfds:NAME:SPLIT, or text=PATH for files")
    return TfdsExamples(name=found[1], split=found[2] or "train", field=field, language=language)
