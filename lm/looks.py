"""Looks at a run between its steps: saves, held-out evaluation, tasks, samples. None of them may cost a step.

All that a look reads is opened and tried before the first step; a save comes before the looks of its step; a look that fails
is one line, and the run continues. Tasks and decoding are imported where the config asks for them (`Config.evaluate`,
`every.sample`, labelled examples), so that plain pre-training loads neither.
"""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax

from lm.config import Config
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import ExampleSet
from lm.errors import check, one_line, translate
from lm.evaluation.held_out import HeldOut
from lm.progress import Meter, Run
from lm.strict_json import load_json
from lm.training.state import TrainState
from lm.training.stopping import Watch
from lm.training.writers import Writers

if TYPE_CHECKING:
    from lm.evaluation.subject import Task


def open_tasks(config: Config) -> Mapping[str, Task]:
    """Open the tasks that `Config.evaluate` names; raises UserError for an unknown name or option."""
    if not config.evaluate:
        return {}
    from lm.evaluation.registry import named

    return named(config.evaluate)


def rehearse(config: Config, tasks: Mapping[str, Task], tokenizer: Tokenizer, params: Any, mesh: jax.sharding.Mesh) -> None:
    """Try the inputs of later looks: files of tasks to their last field, prompts of samples; `params` are abstract.

    Where processes share the parameters, a copy of them must fit on the devices of each.

    Raises UserError, which then comes before the first step.
    """
    if tasks or config.every.sample or config.objective.answers is not None:
        copies().check_copy(params, copies().own_mesh(mesh, config.batch // config.micro_batches))
    if tasks:
        from lm.evaluation import in_training

        in_training.rehearse(config, params, tokenizer, tasks)
    if config.every.sample:
        from lm.decode.samples import check_prompts

        check_prompts(config.objective, params, tokenizer, config.samples)


def check_figure(config: Config, held_out: HeldOut | None) -> None:
    """Raise UserError where `stop.metric` is a figure of single examples and this run cannot measure it at each evaluation."""
    metric = config.stop.metric
    if config.stop.patience and held_out and metric.startswith("examples/"):
        whole = held_out.count >= len(held_out.batches)
        check(whole, f"stop.metric={metric} is of the whole held-out split: set evaluate_batches=0, or take loss or accuracy")


def due(every: int, step: int) -> bool:
    """Return whether a look every so many steps falls on this one; 0 is never."""
    return every > 0 and step % every == 0


def look(run: Run, step: int, state: TrainState, meter: Meter, writers: Writers, ending: bool, saved: bool = False) -> None:
    """Save, evaluate and sample, each when it is due; an evaluation better than all before is saved too.

    `saved`: the save of this step is on disk already, from a sitting that ended before its looks.
    """
    config, last, params, watch = run.config, step == run.config.steps, state.best_params(), meter.watch
    looking = last or due(config.every.evaluate, step)
    evaluating = looking and run.held_out is not None
    # The save first: a look that takes the process down must not take the steps with it. Its notes tell a later sitting
    # whether the evaluation of this step is still to be done.
    if not saved and (ending or due(config.every.save, step)):
        with run.spent.within("saves"):
            run.checkpoints.save(step, state, run.notes(watch, not evaluating), batch=run.batch)
        saved = True

    own = Own(run, params)
    figures, improved = None, False
    if evaluating:
        with attempted(f"step {step}: evaluation", writers.say):
            # With patience the files are the best checkpoint's (`conclude`).
            values = held_out_figures(own, run.workdir if last and not config.stop.patience else None)
            writers.write(step, values)
            figures = {name.removeprefix("eval/validation/"): value for name, value in values.items()}
        if figures is not None:
            improved = watch.see(step, figures)
        # Even after a failed evaluation: a later sitting would fail at it again.
        if saved:
            with run.spent.within("saves"):
                run.checkpoints.amend(step, run.notes(watch, True), figures)
    # A step that no interval saves is saved where the run may end with it as its result.
    if not saved and (watch.over or (improved and config.keep.best)):
        with run.spent.within("saves"):
            run.checkpoints.save(step, state, run.notes(watch, True), figures, run.batch)

    for name, task in run.tasks.items() if looking else ():
        with attempted(f"step {step}: {name}", writers.say):
            writers.write(step, task_figures(own, {name: task}))
    if due(config.every.sample, step) or (config.every.sample and (last or watch.over)):
        with attempted(f"step {step}: sampling", writers.say):
            for title, text in sampled(own):
                writers.text(step, title, text)


@contextlib.contextmanager
def attempted(name: str, say: Callable[[str], None]):
    """Turn a failed look into a line; where several processes look together, the failure of one ends all."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            raise
        if os.environ.get("LM_TRACEBACK"):
            traceback.print_exc()
        reason = translate(error) or f"{type(error).__name__}: {one_line(str(error))}"
        say(f"{name} failed, the run goes on without it: {reason}")


def copies() -> ModuleType:
    """Return the module of parameters' copies, which only runs with samples, tasks or labels need."""
    from lm.training import own

    return own


class Own:
    """The parameters of one look, on the run's mesh and, once asked for, on this process's own devices (`lm.training.own`)."""

    def __init__(self, run: Run, shared: Any):
        self.run, self.shared = run, shared
        self.mesh = copies().own_mesh(run.mesh, run.config.batch // run.config.micro_batches)

    @functools.cached_property
    def params(self) -> Any:
        return copies().own_copy(self.shared, self.mesh)


def held_out_figures(own: Own, folder: Path | None) -> dict[str, float]:
    """Measure the held-out split: `eval/validation/...`; predictions for labelled examples are written to `folder`."""
    held_out = own.run.held_out
    figures = held_out(own.shared)
    if isinstance(held_out.tokens, ExampleSet):
        from lm.evaluation.downstream import logged

        params = own.params
        with jax.set_mesh(own.mesh):
            alone = logged(held_out.own, params, folder)
        figures |= copies().from_lead(alone)  # the patience of all processes counts the same
    return figures


def task_figures(own: Own, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Measure tasks: `eval/NAME/METRIC`."""
    if not tasks:
        return {}
    from lm.evaluation.in_training import measured

    params = own.params
    with jax.set_mesh(own.mesh):
        return measured(own.run.config, params, own.run.corpus.tokenizer, tasks)


def sampled(own: Own) -> list[tuple[str, str]]:
    """Return (title, text): continued prompts, or predictions for held-out rows."""
    run, params = own.run, own.params
    config, tokenizer = run.config, run.corpus.tokenizer
    with jax.set_mesh(own.mesh):
        # Objectives without left-to-right generation show predictions for held-out rows instead.
        if config.objective.writes != "text":
            rows = run.held_out.own.show(params, tokenizer) if run.held_out else []
            return [(f"held-out row {i + 1}", text) for i, text in enumerate(rows)]
        from lm.decode.samples import samples

        return samples(config.objective, params, tokenizer, config.samples, config.seed)


# -- the end of a run --------------------------------------------------------------------------------------------------


def done(config: Config, workdir: Path, step: int, watch: Watch) -> str | None:
    """Return a line for a run that is complete; None where steps remain, or only the best checkpoint's figures."""
    if not watch.over and step < config.steps:
        return None
    path = workdir / "summary.json"
    summary = load_json(path, dict) if path.exists() else {}
    if summary.get("steps") != step or (config.stop.patience and "best_step" not in summary):
        return None  # killed between the last save and the summary
    if watch.over:
        line = f"{workdir} stopped early at step {step}: {watch.reason()}; raise --config.stop.patience"
    else:
        line = f"{workdir} has all its {step} steps; raise --config.steps"
    return f"{line} or choose another --workdir"
