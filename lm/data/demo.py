"""The documentation in every Python installation: a real English corpus, and labelled examples, without a download."""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lm.data.types import Example, ExampleSource, Piece, Read, Reader, Task, TextSource
from lm.errors import UserError, check_choices

Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# Tests, generated tables and programs: no prose, or not about the library.
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "lib2to3",
           "idlelib", "turtledemo", "ensurepip"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Documentation(TextSource):
    """The installed interpreter's documentation: docstrings of the standard library and the language reference.

    `packages` adds the docstrings of installed packages by import name. Nothing is imported or downloaded.
    """

    packages: tuple[str, ...] = ()

    def open(self) -> Reader:
        return DocumentationReader(self.packages)


class DocumentationReader:
    """One document a module (its docstrings in source order, by `ast`) and one a language topic."""

    def __init__(self, packages: tuple[str, ...] = ()):
        self.name = "+".join(("python-documentation", *packages))
        self.roots = [("", Path(sysconfig.get_paths()["stdlib"]))]
        self.roots += [(name, _folder(name)) for name in packages]

    @functools.cached_property
    def documents(self) -> list[str]:
        seen: set[str] = set()
        modules = [_module(name, path, seen) for name, path in self.files]
        return [text for text in modules if text] + _topics()

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int) -> Piece:
        return Piece(self.documents[i])

    def signature(self) -> str:
        stats = [path.stat() for _, path in self.files]
        size, newest = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
        return f"{self.name} {sys.version} files={len(stats)} bytes={size} newest={newest}"

    def inputs(self) -> list[str]:
        return [str(path) for _, path in self.files]

    @functools.cached_property
    def files(self) -> list[tuple[str, Path]]:
        """(dotted name, path) of every module, in the order of paths."""
        found = []
        for package, root in self.roots:
            for path in [root] if root.is_file() else sorted(_modules(root)):
                parts = path.relative_to(root).with_suffix("").parts
                if not SKIPPED.intersection(parts):
                    found.append((".".join(p for p in (package, *parts) if p and p != "__init__"), path))
        return found


def _modules(root: Path) -> Iterator[Path]:
    """Walk the Python files below a folder, past the skipped ones: site-packages alone takes seconds to list."""
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in SKIPPED]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


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


def _collect(node: ast.Module | Named, name: str, header: str, lines: list[str], seen: set[str], entries: list[str]) -> None:
    text = ast.get_docstring(node)
    if text and text not in seen:
        seen.add(text)
        # A lone surrogate, legal in a Python literal, is not text.
        entries.append(f"{header or name}\n\n{text}".encode("utf-8", "replace").decode())
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, Named):
            inner = f"{name}.{child.name}"
            _collect(child, inner, _header(child, inner, lines), lines, seen, entries)


def _header(node: Named, name: str, lines: list[str]) -> str:
    """Return `class a.B(C)` or `def a.b(x, y=1)`, cut from the source: ten times the speed of ast.unparse."""
    text = " ".join(line.strip() for line in lines[node.lineno - 1 : max(node.lineno, node.body[0].lineno - 1)])
    before, _, after = text.partition(node.name)
    return f"{before}{name}{after.split('#')[0].rstrip().removesuffix(':')}"


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
            elsewhere = module[(low + together) % len(module)].name.rpartition(".")[2]
            if all(elsewhere != entry.name.rpartition(".")[2] for entry in group):
                values = {"question": f"What is {elsewhere}?", "context": context, "answers": [], "starts": []}
                yield Example(values, f"{group[0].name}, none", group[0].module)


def following(modules: list[list[Entry]], options: int = 4) -> Iterator[Example]:
    """Multiple choice: the text of a name among texts of other entries of its module."""
    for module in modules:
        for k, entry in enumerate(module if len(module) >= options else ()):
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
        other = re.split(r"(?<=[.!?]) ", flat[(k + len(flat) // 2) % len(flat)].text)[0]
        for second, score in ((parts[1], 1.0), (other, 0.0)):
            yield Example({"sentence1": parts[0], "sentence2": second, "score": score}, entry.name, entry.module)
