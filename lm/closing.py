"""The end of a run: its curves, and its last lines: time, best held-out figure, folder, the commands that come next.

Loaded after the last step, with matplotlib and the families of published models.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.console import duration, number
from lm.convert.convert import family_for
from lm.data.types import labelled
from lm.errors import UserError
from lm.evaluation.report.learning_curve import curves
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.training.stopping import Watch


def close(config: Config, workdir: Path, summary: Mapping[str, Any], watch: Watch) -> None:
    """Draw the curves of a run; where it is complete, print its last lines."""
    curves(workdir)
    # A sitting that a signal ended is not the end of the run.
    if summary["steps"] == config.steps or watch.over:
        best = (watch.since, watch.best) if math.isfinite(watch.best) else None
        print("\n".join(closing(config, workdir, summary, best)), flush=True)


def closing(config: Config, workdir: Path, summary: Mapping[str, Any], best: tuple[int, float] | None) -> list[str]:
    """Return the lines of a run that ended; `best`: (step, value) of the best evaluation by the rule that keeps checkpoints."""
    parts = [f"{summary['steps']:,} steps in {duration(summary['seconds'])}"]
    if best is not None:
        parts.append(f"best validation/{config.stop.metric} {number(best[1])} at step {best[0]:,}")
    lines = ["  ".join([*parts, f"folder {workdir}"]), "next:"]
    following = commands(config, workdir, summary["steps"])
    width = max(len(purpose) for purpose, _ in following)
    return lines + [f"  {purpose:{width}}  {line}" for purpose, line in following]


def commands(config: Config, workdir: Path, steps: int) -> list[tuple[str, str]]:
    """List (purpose, command line) of the next steps that this objective allows."""
    objective, run = config.objective.measured(), f"--workdir={shlex.quote(str(workdir))}"
    stack = isinstance(objective.model, EncoderDecoder if objective.writes == "answer" else Transformer)
    lines = []
    if objective.writes == "text":
        lines.append(("write", f"python -m lm.generate {run} --prompt='The'"))
    elif objective.fills:
        lines.append(("fill", f"python -m lm.generate {run} --strategy={objective.fills[0]} --prompt='The [MASK] is here.'"))
    if labelled(config.data.source):
        lines.append(("answer", f"python -m lm.predict {run} --input=FILE"))
    lines.append(("measure", f"python -m lm.evaluate {run}"))
    if stack and (objective.writes or "[MASK]" in objective.special) and not objective.task:
        lines.append(("look inside", f"python -m lm.explain {run} --text='A text.'"))
    lines.append(("train on", f"python -m lm.main {run} --config.steps={2 * steps}"))
    if family := exportable(config):
        lines.append((f"export as {family}", f"python -m lm.convert {run} --output=FOLDER"))
    return lines


def exportable(config: Config) -> str:
    """Return the published family that holds the model, "" without one."""
    try:
        # The export itself is asked: there is no second list of what it can write.
        return family_for(config.objective.measured())[0].name
    except UserError:
        return ""
