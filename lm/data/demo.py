"""Read the documentation that every Python installation carries: a real English corpus without a download."""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.data.types import Example, ExampleSource, Piece, Read, Reader, Task, TextSource
from lm.errors import UserError, check_choices

# Tests, generated tables and programs: no prose, or prose about nothing else here.
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "lib2to3",
           "idlelib", "turtledemo", "ensurepip"}  # fmt: skip


class DocumentationReader:
    """One document a module (docstrings in source order) and one a language topic; found by `ast`, never imported."""

    def __init__(self, packages: tuple[str, ...] = ()):
        self.name = "+".join(("python-documentation", *packages))
        self.roots = [("", Path(sysconfig.get_paths()["stdlib"]))]
        self.roots += [(name, _folder(name)) for name in packages]

    @functools.cached_property
    def documents(self) -> list[str]:
        seen: set[str] = set()
        modules = [_module(name, path, seen) for name, path in self._files()]
        return [text for text in modules if text] + _topics()

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int) -> Piece:
        return Piece(self.documents[i])

    def signature(self) -> str:
        stats = [path.stat() for _, path in self._files()]
        size, newest = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
        return f"{self.name} {sys.version} files={len(stats)} bytes={size} newest={newest}"

    def inputs(self) -> list[str]:
        return [str(path) for _, path in self._files()]

    def _files(self) -> list[tuple[str, Path]]:
        found = []
        for package, root in self.roots:
            for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                if not SKIPPED.intersection(parts):
                    found.append((".".join(p for p in (package, *parts) if p and p != "__init__"), path))
        return found


def _folder(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package.partition(".")[0])  # does not import a top-level package
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UserError(f"Documentation(packages=...): no Python package {package!r} is installed here")
    path = Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return list(dict.fromkeys(text.strip() + "\n" for _, text in sorted(topics.items())))


def _module(name: str, path: Path, seen: set[str]) -> str:
    """Return the module's docstrings as readable text, without those in `seen`; "" when it has none."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return ""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and files for other Python versions
        return ""
    lines = source.decode("utf-8", "replace").splitlines()
    entries: list[str] = []
    _collect(tree, name, "", lines, seen, entries)
    return "\n\n".join(entries) + "\n" if entries else ""


def _collect(node, name: str, header: str, lines: list[str], seen: set[str], entries: list[str]) -> None:
    text = ast.get_docstring(node)
    if text and text not in seen:
        seen.add(text)
        # A lone surrogate, legal in a Python literal, is not text.
        entries.append(f"{header or name}\n\n{text}".encode("utf-8", "replace").decode())
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}"
            _collect(child, inner, _header(child, inner, lines), lines, seen, entries)


def _header(node, name: str, lines: list[str]) -> str:
    """Return `class a.B(C)` or `def a.b(x, y=1)`, cut from the source: ten times the speed of ast.unparse."""
    text = " ".join(line.strip() for line in lines[node.lineno - 1 : max(node.lineno, node.body[0].lineno - 1)])
    before, _, after = text.partition(node.name)
    return f"{before}{name}{after.split('#')[0].rstrip().removesuffix(':')}"


@dataclass(frozen=True, kw_only=True)
class Documentation(TextSource):
    """The installed interpreter's documentation: docstrings of the standard library and the language reference.

    `packages` adds the docstrings of installed packages by import name. Nothing is imported or downloaded.
    """

    packages: tuple[str, ...] = ()

    def open(self) -> Reader:
        return DocumentationReader(self.packages)


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


@dataclass(frozen=True, kw_only=True)
class Documented(ExampleSource):
    """Examples made of the installed interpreter's documentation, for trying fine-tuning out; nothing is downloaded.

    "topic": a paragraph and its package; "marks": words and the mark that follows each; "questions": what a function is
    for, a span of its module's text; "next": the text that belongs to a name, of four; "alike": two sentences and
    whether they are of one text; "summary": the paragraphs of a docstring and its first line.
    """

    task: Task = "topic"

    def __post_init__(self):
        check_choices(self)

    def open(self) -> Read:
        return read_documented(self.task)
