"""Labelled examples that every Python installation holds, made of its documentation: for trying fine-tuning out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from lm.data.documentation import DocumentationReader
from lm.data.examples import Example, Read, Task

ENTRY = re.compile(r"(?:class|def|async def) ([\w.]+)")
MARKS = {",": "COMMA", ".": "STOP", ":": "COLON", ";": "COMMA", "?": "STOP", "!": "STOP"}


class Entry:
    """A documented class or function: its name, its module, and its first paragraph in one line."""

    def __init__(self, name: str, module: str, text: str):
        self.name, self.module, self.text = name, module, text


def entries(document: str) -> list[Entry]:
    """List the entries of a module's document."""
    blocks, found = document.split("\n\n"), []
    module = blocks[0].strip()
    for header, text in itertools.pairwise(blocks):
        match = ENTRY.match(header)
        line = " ".join(text.split())
        if match and 20 <= len(line) <= 300 and not ENTRY.match(text):
            found.append(Entry(match[1], module, line))
    return found


def read_documented(task: Task) -> Read:
    """Make the examples of a task."""
    reader = DocumentationReader()
    if task == "summary":
        return Read(f"python-documentation, {task}", tuple(summaries(reader)), f"{reader.signature()} {task}")
    modules = [found for i in range(len(reader)) if (found := entries(reader[i].text))]
    made = {"topic": topics, "marks": marks, "questions": questions, "next": following, "alike": alike}[task]
    return Read(f"python-documentation, {task}", tuple(made(modules)), f"{reader.signature()} {task}")


def summaries(reader: DocumentationReader) -> Iterator[Example]:
    """What does a function or a class do, in a line? The first line of its docstring, told by the paragraphs below it."""
    for i in range(len(reader)):
        blocks = reader[i].text.split("\n\n")
        heads = [k for k, block in enumerate(blocks) if ENTRY.match(block)]
        for low, high in itertools.pairwise([*heads, len(blocks)]):
            line, *body = [" ".join(block.split()) for block in blocks[low + 1 : high]] or [""]
            text = "\n".join(body)
            if 15 <= len(line) <= 120 and len(text) >= 60:
                yield Example({"source": text, "target": line}, ENTRY.match(blocks[low])[1], blocks[0].strip())


def topics(modules: list[list[Entry]], least: int = 60) -> Iterator[Example]:
    """Which package is a paragraph from? Those that have `least` of them."""
    packages: dict[str, list[Entry]] = {}
    for module in modules:
        for entry in module:
            packages.setdefault(entry.name.partition(".")[0], []).append(entry)
    for package, found in packages.items():
        for entry in found if len(found) >= least else ():
            yield Example({"text": entry.text, "label": package}, entry.name, entry.text)


def marks(modules: list[list[Entry]]) -> Iterator[Example]:
    """Which mark follows each word? Words in lower case, as a speech recogniser writes them."""
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
    """What is a function for? The answer is its sentence among those of its neighbours; some questions have none."""
    for module in modules:
        for low in range(0, len(module), together):
            group = module[low : low + together]
            context, starts = "", []
            for entry in group:
                context += f"{entry.name.rpartition('.')[2]}: "
                starts.append(len(context))
                context += entry.text + "\n"
            for k, entry in enumerate(group):
                asked = f"What is {entry.name.rpartition('.')[2]}?"
                answer = re.split(r"(?<=[.!?]) ", entry.text)[0]
                values = {"question": asked, "context": context, "answers": [answer], "starts": [starts[k]]}
                yield Example(values, entry.name, entry.module)
            elsewhere = module[(low + together) % len(module)].name.rpartition(".")[2]
            if all(elsewhere != entry.name.rpartition(".")[2] for entry in group):
                values = {"question": f"What is {elsewhere}?", "context": context, "answers": [], "starts": []}
                yield Example(values, f"{group[0].name}, none", group[0].module)


def following(modules: list[list[Entry]], options: int = 4) -> Iterator[Example]:
    """Which text belongs to a name? The wrong ones are those of other entries of the module."""
    for module in modules:
        for k, entry in enumerate(module if len(module) >= options else ()):
            right = k % options
            others = [module[(k + step) % len(module)].text for step in range(1, options)]
            texts = [*others[:right], entry.text, *others[right:]]
            yield Example({"context": entry.name, "options": texts, "label": right}, entry.name, entry.module)


def alike(modules: list[list[Entry]]) -> Iterator[Example]:
    """Are two sentences of one entry, or of two modules?"""
    flat = [entry for module in modules for entry in module]
    for k, entry in enumerate(flat):
        parts = re.split(r"(?<=[.!?]) ", entry.text)
        if len(parts) < 2 or min(len(parts[0]), len(parts[1])) < 15:
            continue
        other = re.split(r"(?<=[.!?]) ", flat[(k + len(flat) // 2) % len(flat)].text)[0]
        for second, score in ((parts[1], 1.0), (other, 0.0)):
            yield Example({"sentence1": parts[0], "sentence2": second, "score": score}, entry.name, entry.module)
