"""Labelled examples made of the documentation in every Python installation, to try fine-tuning without a download."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lm.data.demo import DocumentationReader
from lm.data.types import Example, ExampleSource, Read, Task
from lm.errors import check_choices

ENTRY = re.compile(r"(?:class|def|async def) ([\w.]+)")
MARKS = {",": "COMMA", ".": "STOP", ":": "COLON", ";": "COMMA", "?": "STOP", "!": "STOP"}


@dataclass(frozen=True, kw_only=True)
class Documented(ExampleSource):
    """Labelled examples made of the interpreter's documentation, to try fine-tuning without a download.

    "topic": a paragraph and its package; "marks": words and the mark after each; "questions": the purpose of a function, a
    span of its module's text; "next": the text of a name, among four; "alike": whether two sentences are of one text;
    "summary": the paragraphs of a docstring and its first line.
    """

    task: Task = "topic"  # kind of examples

    def __post_init__(self):
        check_choices(self)

    def open(self) -> Read:
        reader = DocumentationReader()
        modules = [items for i in range(len(reader)) if (items := module_entries(reader[i].text))]
        makers = {"topic": topics, "marks": marks, "questions": questions, "next": following, "alike": alike}
        examples = summaries(reader) if self.task == "summary" else makers[self.task](modules)
        return Read(f"python-documentation, {self.task}", tuple(examples), f"{reader.signature()} {self.task}")


class Entry(NamedTuple):
    """A documented class or function, with its first paragraph in one line."""

    name: str
    module: str
    text: str


def module_entries(document: str) -> list[Entry]:
    """Parse the entries of a module's document."""
    blocks, entries = document.split("\n\n"), []
    module = blocks[0].strip()
    for header, text in itertools.pairwise(blocks):
        match = ENTRY.match(header)
        line = " ".join(text.split())
        if match and 20 <= len(line) <= 300 and not ENTRY.match(text):
            entries.append(Entry(match[1], module, line))
    return entries


def summaries(reader: DocumentationReader) -> Iterator[Example]:
    """Summaries: the paragraphs of a docstring, and its first line."""
    for i in range(len(reader)):
        blocks = reader[i].text.split("\n\n")
        heads = [k for k, block in enumerate(blocks) if ENTRY.match(block)]
        for low, high in itertools.pairwise([*heads, len(blocks)]):
            line, *body = [" ".join(block.split()) for block in blocks[low + 1 : high]] or [""]
            text = "\n".join(body)
            if 15 <= len(line) <= 120 and len(text) >= 60:
                yield Example({"source": text, "target": line}, ENTRY.findall(blocks[low])[0], blocks[0].strip())


def topics(modules: list[list[Entry]], least: int = 60) -> Iterator[Example]:
    """Classification: a paragraph, and its package among those with at least `least` paragraphs."""
    packages: dict[str, list[Entry]] = {}
    for module in modules:
        for entry in module:
            packages.setdefault(entry.name.partition(".")[0], []).append(entry)
    for package, members in packages.items():
        for entry in members if len(members) >= least else ():
            yield Example({"text": entry.text, "label": package}, entry.name, entry.text)


def marks(modules: list[list[Entry]]) -> Iterator[Example]:
    """Tagging: words in lower case, as a speech recogniser writes them, and the mark after each."""
    for module in modules:
        for entry in module:
            words, tags = [], []
            for word in entry.text.split():
                bare = word.strip(",.:;?!()[]'\"`")
                if bare:
                    words.append(bare.lower())
                    tags.append(MARKS.get(word[-1], "O"))
            if len(words) > 3:
                yield Example({"words": words, "tags": tags}, entry.name, entry.module)


def questions(modules: list[list[Entry]], together: int = 4) -> Iterator[Example]:
    """Extraction: "What is NAME?", answered by its sentence among those of its neighbours; some questions have no answer."""
    for module in modules:
        for low in range(0, len(module), together):
            group = module[low : low + together]
            context, starts = "", []
            for entry in group:
                context += f"{entry.name.rpartition('.')[2]}: "
                starts.append(len(context))
                context += entry.text + "\n"
            for k, entry in enumerate(group):
                question = f"What is {entry.name.rpartition('.')[2]}?"
                answer = re.split(r"(?<=[.!?]) ", entry.text)[0]
                values = {"question": question, "context": context, "answers": [answer], "starts": [starts[k]]}
                yield Example(values, entry.name, entry.module)
            # Unanswerable: the first name of the next group, unless a short module has it here, too.
            elsewhere = module[(low + together) % len(module)].name.rpartition(".")[2]
            if all(elsewhere != entry.name.rpartition(".")[2] for entry in group):
                values = {"question": f"What is {elsewhere}?", "context": context, "answers": [], "starts": []}
                yield Example(values, f"{group[0].name}, none", group[0].module)


def following(modules: list[list[Entry]], options: int = 4) -> Iterator[Example]:
    """Multiple choice: the text of a name among texts of other entries of its module."""
    for module in modules:
        for k, entry in enumerate(module if len(module) >= options else ()):
            # In turn, so that no place is right more often than another.
            right = k % options
            others = [module[(k + step) % len(module)].text for step in range(1, options)]
            texts = [*others[:right], entry.text, *others[right:]]
            yield Example({"context": entry.name, "options": texts, "label": right}, entry.name, entry.module)


def alike(modules: list[list[Entry]]) -> Iterator[Example]:
    """Similarity: two sentences of one entry (1), or of two modules (0)."""
    flat = [entry for module in modules for entry in module]
    for k, entry in enumerate(flat):
        parts = re.split(r"(?<=[.!?]) ", entry.text)
        if len(parts) < 2 or min(len(parts[0]), len(parts[1])) < 15:
            continue
        # Half of the list away: a text of another module, the same in every run.
        other = re.split(r"(?<=[.!?]) ", flat[(k + len(flat) // 2) % len(flat)].text)[0]
        for second, score in ((parts[1], 1.0), (other, 0.0)):
            yield Example({"sentence1": parts[0], "sentence2": second, "score": score}, entry.name, entry.module)
