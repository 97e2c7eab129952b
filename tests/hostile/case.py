"""One hostile case as data, and the verdict on what a command did with it."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Lines of libraries on stderr that are no words of ours.
NOISE = re.compile(
    r"frozen runpy|^\s*warn\(|absl::InitializeLog|^[IWEF]\d{4} |^WARNING|Warning: |^\s*$"
    r"|^\s+warnings\.warn|os\.fork|self\.pid ="
)
TRACEBACK = re.compile(r"Traceback \(most recent|Fatal Python error|SIGABRT|panicked at|Check failed|terminate called")


@dataclass(frozen=True)
class Case:
    """A command line (or a function that runs in the case's folder), the files it meets, and what must come of it.

    `expect` is "STATUS words|other words": the words must stand in the line of an error (status 2), or in the output
    (status 0); "02" allows both. `files` are written into the folder first; `damage` is called with the folder.
    """

    group: str
    name: str
    run: str | Callable[[Path], None]
    expect: str = "2"
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    damage: Callable[[Path], None] | None = None
    also: Callable[[Path, str], str | None] | None = None  # (folder, stdout) -> what is wrong
    quick: bool = False
    seconds: float = 60


@dataclass(frozen=True)
class Outcome:
    """What a case's process left: its exit status (negative: a signal), its output, and whether its time was up."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    late: bool
    lost: tuple[str, ...] = ()


def contents(folder: Path) -> dict[str, str]:
    """Map a digest of every file below a folder (no links, no locks) to the file's name."""
    digests = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if path.is_symlink() or not path.is_file() or name.endswith(".lock"):
                continue
            with path.open("rb") as file:
                digests[hashlib.file_digest(file, "sha256").hexdigest()] = str(path.relative_to(folder))
    return digests


def verdict(case: Case, outcome: Outcome, folder: Path) -> tuple[str, str]:
    """Return ("well" | "traceback" | "hang" | "silent", what is wrong)."""
    everything = outcome.stdout + outcome.stderr
    if outcome.late:
        return "hang", f"not ended after {outcome.seconds:.0f} s"
    if callable(case.run) and outcome.status == 1 and "AssertionError" in outcome.stderr:  # our own words on what is wrong
        return "silent", outcome.stderr.strip().splitlines()[-1][:300]
    if TRACEBACK.search(everything) or outcome.status < 0 or outcome.status in (1, 134, 139):
        return "traceback", f"status {outcome.status}"
    if callable(case.run):
        return ("well", "") if outcome.status == 0 else ("silent", f"status {outcome.status}")
    allowed, _, words = case.expect.partition(" ")
    if str(outcome.status) not in allowed:
        return "silent", f"status {outcome.status}, not {' or '.join(allowed)}"
    if outcome.status == 2:
        lines = [line for line in outcome.stderr.splitlines() if not NOISE.search(line)]
        errors = [line for line in lines if line.startswith("error: ")]
        if len(errors) != 1 or lines[-1] != errors[0]:
            return "traceback" if len(lines) > 8 else "silent", f"{len(errors)} lines of error among {len(lines)}"
        if len(errors[0]) > 1200:
            return "silent", f"an error of {len(errors[0])} characters"
        everything = errors[0]
        if outcome.lost:
            return "silent", f"lost: {', '.join(outcome.lost)}"
    if words and not any(word.lower() in everything.lower() for word in words.split("|")):
        return "silent", f"no word of '{words}'"
    if case.also and (wrong := case.also(folder, outcome.stdout)):
        return "silent", wrong
    return "well", ""
