"""The documentation in every Python installation: a real English corpus without a download."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.data.types import Piece, Reader, TextSource
from lm.errors import UserError

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

    # Several topics share one text.
    return list(dict.fromkeys(text.strip() + "\n" for _, text in sorted(topics.items())))


def _module(name: str, path: Path, seen: set[str]) -> str:
    """Return the module's docstrings as readable text, without those in `seen`; "" when it has none."""
    source = path.read_bytes()
    # Parsing takes the time: files without a docstring's quotes are not parsed at all.
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
