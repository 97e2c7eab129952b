"""What a run shows of its parameters: figures of tasks, samples, and at its end those of its best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from lm.config import Config
from lm.decode.generate import generate
from lm.decode.sampling import Sampling
from lm.evaluation.downstream import logged
from lm.evaluation.registry import label
from lm.evaluation.subject import Subject, Task
from lm.strict_json import load_json
from lm.training.checkpoint import Checkpoints
from lm.training.state import TrainState
from lm.training.stopping import Watch
from lm.training.writers import finite


def measured(run: Any, params: Any, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Measure tasks of the config: `eval/NAME/METRIC`; nothing where processes share the parameters."""
    if jax.process_count() > 1:
        return {}
    subject = Subject(run.config, params, run.corpus.tokenizer, seed=run.config.seed)
    found = {label(name): task.measure(subject) for name, task in tasks.items()}
    return {f"eval/{name}/{metric}": f.value for name, figures in found.items() for metric, f in figures.items()}


def samples(run: Any, params: Any) -> list[tuple[str, str]]:
    """Continue the config's prompts, or guess at rows of held-out text; nothing where processes share the parameters."""
    if jax.process_count() > 1:
        return []
    objective, tokenizer = run.config.objective, run.corpus.tokenizer
    if objective.writes != "text":
        shown = run.held_out.show(params, tokenizer) if run.held_out else []
        return [(f"held-out row {i + 1}", text) for i, text in enumerate(shown)]
    found = generate(
        objective,
        params,
        tokenizer,
        list(run.config.samples),
        max_new_tokens=new_tokens(objective),
        sampling=Sampling(temperature=0.8),
        seed=run.config.seed,
    )
    titles = [f"sample of {sample.prompt!r}" if sample.prompt else "sample" for sample in found]
    return [(title, sample.prompt + sample.text) for title, sample in zip(titles, found)]


def new_tokens(objective: Any) -> int:
    """Return the length of a sample."""
    return min(200, objective.model.context // 2)


def done(config: Config, workdir: Path, step: int, watch: Watch) -> str | None:
    """Say that a run is at its end; None where something is left to do, and be it to measure the best checkpoint."""
    if not watch.over and step < config.steps:
        return None
    path = workdir / "summary.json"
    summary = load_json(path, dict) if path.exists() else {}
    if summary.get("steps") != step or (config.stop.patience and "best_step" not in summary):
        return None  # killed between the last save and the summary
    if watch.over:
        told = f"{workdir} stopped early at step {step}: {watch.reason()}; raise --config.stop.patience"
    else:
        told = f"{workdir} has all its {step} steps; raise --config.steps"
    return f"{told} or choose another --workdir"


def conclude(run: Any, abstract: TrainState, step: int, watch: Watch, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the best checkpoint of a run with patience and leave its predictions; give what summary.json says of it.

    Nothing of a run without patience, and of one that is not at its end.
    """
    rule = run.config.stop
    if not rule.patience or not (watch.over or step == run.config.steps):
        return {}
    if watch.over:
        say(f"stopped early at step {step}: {watch.reason()}")
    run.checkpoints.wait()
    # Opened anew: a manager that saves whole states reads no part of one.
    saved = Checkpoints(run.workdir, run.config.keep, read_only=True, stop=rule)
    best, part = saved.best(), "params" if abstract.average is None else "average"
    say(f"figures and predictions are those of step {best}, the best by eval/validation/{rule.metric}")
    params = saved.restore(best, getattr(abstract, part), part=part)
    found = run.held_out(params) | logged(run.held_out, params, run.workdir) | measured(run, params, run.tasks)
    told = {"stopped": watch.reason()} if watch.over else {}
    return {**told, "best_step": best, "stop": asdict(rule), **finite(found)}
