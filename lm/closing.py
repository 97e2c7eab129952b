"""The end of a run: figures of its best checkpoint, summary, curves and last lines.

Loaded after the last step, with matplotlib and the families of published models.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.console import duration, number
from lm.convert.convert import family_for
from lm.data.types import labelled
from lm.errors import UserError
from lm.evaluation.report.learning_curve import curves
from lm.looks import Own, held_out_figures, task_figures
from lm.models import flops
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.progress import Run
from lm.training.checkpoint import Checkpoints
from lm.training.state import TrainState
from lm.training.stopping import Watch
from lm.training.writers import Writers, finite


def ended(run: Run, abstract: TrainState, step: int, watch: Watch, writers: Writers) -> dict[str, Any]:
    """Finish a sitting after its last save: figures of the best checkpoint, the account of time; return the summary."""
    with run.spent.within("looks"):
        results = conclude(run, abstract, step, watch, writers.say)
    tell(run.spent.account(), step, writers)
    if step < run.config.steps and not watch.over:
        writers.say(f"stopped at step {step} and saved; the same command goes on from here")
    return summary(run, abstract, step) | results


def tell(account: Mapping[str, float], step: int, writers: Writers) -> None:
    """Log the account of a sitting beside the metrics of its last step, and print it."""
    writers.write(step, dict(account))
    whole = max(sum(account.values()), 1e-9)
    parts = [f"{name.removeprefix('time/')} {value:.1f} s ({value / whole:.0%})" for name, value in account.items()]
    writers.say(f"time: {', '.join(parts)}")


def summary(run: Run, abstract: TrainState, steps: int) -> dict[str, Any]:
    """Return the entries of summary.json beside the last metrics.

    `tokens_per_second` is the average over the whole run: start, compilation, evaluations and saves included. The last logged
    `train/tokens_per_second` covers steps alone (`Meter`), as `launch.bench` measures it.
    """
    tokens, seconds, corpus = steps * run.config.batch * run.config.objective.records.tokens, run.seconds(), run.corpus
    return {
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "params": flops.parameter_count(abstract.params),
        "corpus": {"name": corpus.name, "bytes": corpus.bytes, "sha256": corpus.sha256},
    }


def conclude(run: Run, abstract: TrainState, step: int, watch: Watch, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the best checkpoint of a run with patience and write its predictions; return its entries of summary.json.

    None for a run without patience, or before its end.
    """
    rule = run.config.stop
    if not rule.patience or not (watch.over or step == run.config.steps):
        return {}
    if watch.over:
        say(f"stopped early at step {step}: {watch.reason()}")
    # The best may be the checkpoint that is still being written.
    run.checkpoints.wait()
    # Opened anew: a manager that saves whole states reads no part of one.
    saved = Checkpoints(run.workdir, run.config.keep, read_only=True, stop=rule)
    best, part = saved.results("best")[0], "params" if abstract.average is None else "average"
    say(f"figures and predictions are those of step {best}, the best by eval/validation/{rule.metric}")
    params = saved.restore(best, getattr(abstract, part), part=part)
    own = Own(run, params)
    figures = held_out_figures(own, run.workdir) | task_figures(own, run.tasks)
    stopped = {"stopped": watch.reason()} if watch.over else {}
    return {**stopped, "best_step": best, "stop": asdict(rule), **finite(figures)}


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
