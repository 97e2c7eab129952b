"""Commands of the pages: found in their code blocks and code spans, and taken apart."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md", "configs/studies/README.md")),
    *(ROOT / name for name in ("launch/README.md", "lm/README.md")),
    *sorted((ROOT / "lm").glob("*/**/README.md")),
]


@dataclass(frozen=True)
class Command:
    """One shell command of a page."""

    page: str
    words: tuple[str, ...]

    @property
    def module(self) -> str:
        """The module of `python -m MODULE`, "" of other commands."""
        return self.words[2] if self.words[:2] == ("python", "-m") else ""

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.words[3:]

    @property
    def config(self) -> str | None:
        """The value of --config."""
        return next((word.partition("=")[2] for word in self.words if word.startswith("--config=")), None)

    @property
    def overrides(self) -> list[tuple[str, str]]:
        """The fields of --config.a.b=value."""
        found = [word[9:].partition("=") for word in self.words if word.startswith("--config.")]
        return [(name, value) for name, _, value in found]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language, "" for those without one."""
    return [text for name, text in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def spans(page: Path) -> list[str]:
    """Return the code spans outside of fenced blocks."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]


def commands(page: Path) -> list[Command]:
    """Return the commands of a page in their order; of code spans those that begin with python or bash."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in spans(page) if re.match(r"(python -m|bash) ", span)]
    name, found = str(page.relative_to(ROOT)), []
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                found.append(Command(name, tuple(words)))
                words = []
    return list(dict.fromkeys(found))


EVERY = [command for page in PAGES for command in commands(page)]
