"""The folder of a run in a study: whether it is done, in use, failed or missing, and who may start it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from lm.config import Config, from_json
from lm.errors import UserError
from lm.outputs import is_claimed, replace_file
from lm.strict_json import dump_json, load_json
from lm.studies.study import fields_of

State = Literal["done", "running", "failed", "missing"]
TAIL = 4000  # bytes of a console that are read for its last line


def ended(workdir: Path) -> bool:
    """Return whether a run took all its steps or stopped early by its rule: one that was interrupted has a summary, too."""
    try:
        config, summary = (load_json(workdir / f"{name}.json", dict) for name in ("config", "summary"))
    except (OSError, UserError):
        return False
    rule = {name: value for name, value in config.get("stop", {}).items() if name != "type"}
    return summary.get("steps", 0) >= config.get("steps", 0) or ("stopped" in summary and summary.get("stop") == rule)


def state_of(workdir: Path) -> State:
    """Return the state of a run's folder."""
    if ended(workdir):
        return "done"
    if is_claimed(workdir / "arm.json") or is_claimed(workdir):
        return "running"
    return "failed" if (workdir / "failed.json").exists() else "missing"


def check_asked(workdir: Path, config: Config) -> None:
    """Raise UserError where a run of an equal hash had another config: a default was another when it was trained."""
    path = workdir / "asked.json"
    if not path.exists():
        return
    # The path of the run it starts from may change; its name is in the hash.
    before, now = (dataclasses.replace(one, start=None) for one in (from_json(path.read_bytes(), str(path)), config))
    odd = sorted({name for name, _ in set(fields_of(before)) ^ set(fields_of(now))})
    if odd:
        raise UserError(f"{workdir} was trained with another default of {', '.join(odd[:3])}: name another --workdir")


def note_failure(workdir: Path, status: int) -> str:
    """Record why a run failed; return its last line."""
    line = last_line(workdir / "console.txt") or f"it ended with status {status} and without a word"
    replace_file(workdir / "failed.json", dump_json({"status": status, "line": line}, indent=1) + "\n")
    return line


def reason_of(workdir: Path) -> str:
    """Return the last line of a run that failed, "" for others."""
    try:
        return str(load_json(workdir / "failed.json", dict)["line"])
    except (OSError, UserError, KeyError):
        return ""


def last_line(path: Path) -> str:
    """Return the last line of a file that is not empty; of several of one error, that which begins with "error: "."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in lines[-20:] if line.startswith("error: ")]
        return (errors or lines or [""])[-1][:400]
    return ""


def last_metrics(workdir: Path) -> dict[str, Any]:
    """Return the last logged object of a run that trains."""
    with contextlib.suppress(OSError, ValueError), (workdir / "metrics.jsonl").open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL))
        lines = file.read().splitlines()
        for raw in reversed(lines):
            with contextlib.suppress(ValueError):
                found = json.loads(raw)
                if isinstance(found, dict):
                    return found
    return {}
