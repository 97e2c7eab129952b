"""Sources of labelled examples, by the arguments of configs; the two sides of a split."""

from __future__ import annotations

import re
from typing import Any

from lm.data.demo import Documented
from lm.data.labelled.cloze import Cloze
from lm.data.labelled.columns import Columns, Entities
from lm.data.labelled.files import Labelled
from lm.data.labelled.questions import Questions
from lm.data.labelled.tfds import TfdsExamples
from lm.data.types import Example, Task, strings
from lm.errors import UserError, check

__all__ = ["Cloze", "Columns", "Documented", "Entities", "ExampleSet", "ExampleSource", "Labelled", "Questions", "TfdsExamples",
           "examples_from", "held_out_from", "labelled"]  # fmt: skip

ExampleSource = Labelled | Columns | Entities | Questions | Cloze | TfdsExamples | Documented


def labelled(source: Any) -> bool:
    """Tell a source of labelled examples, or a mixture of such alone, from one of running text."""
    return all(isinstance(one, ExampleSource) for one in getattr(source, "sources", (source,)))


def examples_from(
    text: str | None, task: Task = "topic", data: str | None = None, field: str = "text", language: str = ""
) -> ExampleSource:
    """Turn the config arguments `text=PATH` and `data=tfds:NAME[:SPLIT]` into a source: a file by its name, a set of
    TensorFlow Datasets with `field` and `language` of `TfdsExamples`. Neither gives Documented examples of a task.
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
    """Turn the config argument `held_out=PATH|tfds:NAME:SPLIT` into a source; without it a share of the training examples."""
    if held_out is None:
        return share
    text, data = (None, held_out) if held_out.startswith("tfds:") else (held_out, None)
    return examples_from(text, task, data, field, language)


def _published(data: str, field: str, language: str) -> TfdsExamples:
    """Read tfds:NAME[:VERSION][:SPLIT]; a split may be train[:80%], and only a version begins with a digit."""
    found = re.fullmatch(r"tfds:([^:\[\]]+(?::\d[\d.*]*)?)(?::([^\d:].*))?", data)
    if found is None:
        raise UserError(f"data={data}: write data=tfds:NAME or tfds:NAME:SPLIT, or text=PATH for files")
    return TfdsExamples(name=found[1], split=found[2] or "train", field=field, language=language)


class ExampleSet:
    """One side of a split; where code asks for running text, it says that there is none."""

    def __init__(self, name: str, examples: list[Example]):
        self.name, self.examples = name, examples
        self.documents = len(examples)
        self.raw_bytes = sum(len(text.encode()) for example in examples for text in strings(example.values))

    def __len__(self) -> int:
        return len(self.examples)

    def of(self, part: int) -> ExampleSet:
        """Give the examples of one source of a mixture."""
        return ExampleSet(f"{self.name}, source {part + 1}", [example for example in self.examples if example.part == part])

    @property
    def separator(self):
        raise UserError(
            f"{self.name} holds labelled examples, which are no running text: take an objective that reads them "
            "(classify, tag, extract, choice, rank, text2text), or another source"
        )

    tokens = starts = marks = separator
