"""Sinks of a run's metrics and samples: metrics.jsonl, samples/, tensorboard/, W&B on request, and the console."""

import html
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.console import Console
from lm.errors import UserError
from lm.outputs import replace_file
from lm.strict_json import load_json
from lm.training.settings import Wandb


class Writers:
    """All sinks of one run; on other processes than the lead every call does nothing."""

    def __init__(
        self,
        workdir: Path,
        steps: int,
        start: int = 0,
        tokens_per_step: int = 0,
        lead: bool = True,
        wandb: Wandb | None = None,
    ):
        """Open the sinks for the steps after `start`; entries of later steps, from a sitting that was killed, are dropped.

        Raises UserError where W&B is requested and not installed.
        """
        self.workdir, self.tokens_per_step, self.open = Path(workdir), tokens_per_step, lead
        if not lead:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        # W&B first: where the package is missing, a resumed run must not have lost the end of its log.
        label = study_label(self.workdir)
        self.wandb = start_wandb(self.workdir, wandb, label) if wandb else None
        self.metrics = MetricsLog(self.workdir / "metrics.jsonl", start)
        from lm.training.tensorboard import EventFile  # where a run writes, and not where one is planned

        self.events = EventFile(self.workdir / "tensorboard", start)
        if label:
            values = {"arm": label["arm"], "seed": float(label["seed"]), **label.get("fields", {})}
            self.events.hparams(values, f"{label['study']}/{label['arm']}")
        self.sampled: int | None = None
        self.console = Console(steps, start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of one step; a later call for the same step adds to them. Steps never decrease."""
        if not self.open:
            return
        values = {name: float(value) for name, value in values.items()}
        # Counted from the step, not summed: a resumed run continues the same axis.
        if self.tokens_per_step and any(name.startswith("train/") for name in values):
            values["train/tokens"] = float(step * self.tokens_per_step)
        self.metrics.write(step, values)
        self.events.write(step, values)
        if self.wandb:
            self.wandb.log({"step": step, **values})
        self.console.log(step, values)

    def text(self, step: int, name: str, text: str) -> None:
        """Keep a sample in samples/STEP.txt, under its name, and show it."""
        if not self.open:
            return
        path = self.workdir / "samples" / f"{step}.txt"
        path.parent.mkdir(exist_ok=True)
        # The first text of a step truncates its file: a resumed run samples the step again.
        with path.open("a" if step == self.sampled else "w", encoding="utf-8", errors="replace") as file:
            file.write(f"--- {name} ---\n{text}\n\n")
        self.sampled = step
        self.events.text(step, name, text)
        if self.wandb:
            import wandb

            self.wandb.log({"step": step, name: wandb.Html(f"<pre>{html.escape(text)}</pre>")})
        self.console.say(f"--- {name}, step {step} ---\n{text}\n")

    def say(self, text: str) -> None:
        """Print a notice."""
        if self.open:
            self.console.say(text)

    def close(self, summary: Mapping[str, object] | None = None, failed: bool = False) -> None:
        """Close every sink; with a summary, write summary.json: the summary and the last value of every other metric."""
        if not self.open:
            return
        self.open = False
        self.console.close()
        self.metrics.close()
        self.events.close()
        if summary is not None:
            whole = {**summary, **finite(self.metrics.last), **summary}  # twice: its entries come first, and win
            replace_file(self.workdir / "summary.json", json.dumps(whole, indent=2, allow_nan=False) + "\n")
        if self.wandb:
            self.wandb.summary.update(dict(summary or {}))
            self.wandb.finish(exit_code=int(failed))

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        self.close(failed=kind is not None)


class MetricsLog:
    """metrics.jsonl: one JSON object per step, on disk as soon as it is written; NaN and infinity are null."""

    def __init__(self, path: Path, start: int = 0):
        """Open the log for steps after `start`; lines of later steps and lines torn by a crash are dropped."""
        # Steps after the checkpoint run again: their first lines would stand beside the second ones.
        kept = [line for line in parse_metrics(path) if line["step"] <= start]
        text = "".join(dumps(line) for line in kept)
        if path.exists() and path.read_bytes() != text.encode():
            replace_file(path, text)
        self.line: dict = kept[-1] if kept else {"step": -1}
        self.last = {name: value for line in kept for name, value in line.items() if name != "step"}
        self.place = len(text.encode()) - (len(dumps(self.line)) if kept else 0)
        self.end = len(text.encode())
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add values to the line of `step`: the last line, or a new one."""
        if step < self.line["step"]:
            raise ValueError(f"step {step} logged after step {self.line['step']}")
        # The line is kept in memory: a later call for its step writes it again, longer, at the same offset.
        if step > self.line["step"]:
            self.line, self.place = {"step": step}, self.end
        self.line |= finite(values)
        self.last |= finite(values)
        # One write, in place: a kill leaves the old line or the new one. Spaces cover the rest of a longer old line.
        text = dumps(self.line)[:-1].ljust(self.end - self.place - 1) + "\n"
        os.pwrite(self.file, text.encode(), self.place)
        self.end = self.place + len(text)

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)


def dumps(line: dict) -> str:
    """Write one line of the log, ASCII, with its newline."""
    return json.dumps(line, allow_nan=False) + "\n"


def finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Replace NaN and infinity, which JSON lacks, by None."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def parse_metrics(path: Path) -> list[dict]:
    """Read the log's objects in order, torn lines left out; [] for a missing file."""
    lines = []
    for raw in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = json.loads(raw, parse_constant=lambda _: None)  # NaN of another writer: null, as here
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def study_label(workdir: Path) -> dict[str, Any]:
    """Return the study, arm, seed and differing fields of a run that a sweep has started; {} for any other run."""
    path = workdir / "arm.json"
    return load_json(path, dict) if path.is_file() else {}


def start_wandb(workdir: Path, place: Wandb, label: Mapping[str, Any]):
    """Start or resume this folder's W&B run; `step` is a metric there, so that a resumed run may repeat steps."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("W&B is asked for but not installed: pip install wandb, or leave it off") from error
    # The id lies in the folder: a resumed run continues its page there.
    saved, config = workdir / "wandb_id.txt", workdir / "config.json"
    if not saved.exists():
        replace_file(saved, uuid.uuid4().hex[:12])
    run = wandb.init(
        project=place.project,
        entity=place.entity or None,
        group=place.group or label.get("study"),
        tags=[*place.tags, *([label["arm"], f"seed {label['seed']}"] if label else [])] or None,
        name=f"{label['arm']}, seed {label['seed']}" if label else workdir.name,
        id=saved.read_text().strip(),
        dir=str(workdir),
        resume="allow",
        config=json.loads(config.read_text()) if config.exists() else None,
    )
    run.define_metric("*", step_metric="step")
    return run
