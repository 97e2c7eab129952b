"""Looks at a run between its steps: evaluation, tasks, samples. None of them may cost a step.

What a look needs is opened and tried before the first step; a save that is due comes before the looks of its step; a look
that fails is a line, and the run goes on.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lm.config import Config
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.prefill import encode_prompts, fits, opened_steps
from lm.errors import UserError, one_line, translate
from lm.evaluation.downstream import logged
from lm.evaluation.subject import Subject, Task
from lm.progress import Meter
from lm.results import measured, new_tokens, samples
from lm.training.state import TrainState
from lm.training.writers import Writers


class Asked(Exception):
    """A task in rehearsal asked the network."""


class Rehearsal(Subject):
    """A subject without weights: whatever is read and encoded before the network is asked can be tried on it."""

    def score(self, what: str, pairs: Any) -> Any:
        raise Asked


def rehearse(config: Config, tasks: Mapping[str, Task], tokenizer: Tokenizer, params: Any) -> None:
    """Try what later looks read: files of tasks to their last field, prompts of samples; `params` are shapes alone.

    Raises UserError, which then comes before the first step.
    """
    subject = Rehearsal(config, params, tokenizer, seed=config.seed)
    for name, task in tasks.items():
        if not getattr(task, "path", ""):  # the run's own held-out text is opened already
            continue
        try:
            task.measure(subject)
        except UserError as error:
            raise UserError(f"evaluate={name}: {error}") from error
        except OSError:
            raise
        except Exception:  # the network was asked, and there is none: all that comes before is in order
            continue
    objective = config.objective.writer(params)[0]
    if objective.writes == "text" and config.every.sample:
        steps, new = opened_steps(objective), new_tokens(config.objective)
        for text, prompt in zip(config.samples, encode_prompts(objective, tokenizer, config.samples)):
            try:
                fits(steps, prompt, new)
            except UserError as error:
                raise UserError(f"samples: {text[:40]!r}: {error}") from error


def due(every: int, step: int) -> bool:
    """Tell whether something done every so many steps is due after this one."""
    return every > 0 and step % every == 0


def look(
    run: Any, step: int, state: TrainState, meter: Meter, writers: Writers, ending: bool, saved: bool = False
) -> None:
    """Save, evaluate and sample, each when it is due; an evaluation better than all before is saved too.

    `saved`: the save of this step is on disk already, from a sitting that ended before its looks.
    """
    config, last, params, watch = run.config, step == run.config.steps, state.best_params(), meter.watch
    looking = last or due(config.every.evaluate, step)
    evaluating = looking and run.held_out is not None
    if not saved and (ending or due(config.every.save, step)):
        run.checkpoints.save(step, state, run.notes(watch, not evaluating), batch=run.batch)
        saved = True
    figures, improved = None, False
    if evaluating:
        with attempted(f"step {step}: evaluation", writers.say):
            # With patience the files are the best checkpoint's (`conclude`).
            folder = run.workdir if last and not config.stop.patience else None
            found = run.held_out(params) | logged(run.held_out, params, folder)
            writers.write(step, found)
            figures = {name.removeprefix("eval/validation/"): value for name, value in found.items()}
        if figures is not None:
            improved = watch.see(step, figures)
        if saved:
            run.checkpoints.amend(step, run.notes(watch, True), figures)
    if not saved and (watch.over or (improved and config.keep.best)):
        run.checkpoints.save(step, state, run.notes(watch, True), figures, run.batch)
    if run.tasks and looking:
        for name, task in run.tasks.items():
            with attempted(f"step {step}: {name}", writers.say):
                writers.write(step, measured(run, params, {name: task}))
    if due(config.every.sample, step) or (config.every.sample and (last or watch.over)):
        with attempted(f"step {step}: sampling", writers.say):
            for title, text in samples(run, params):
                writers.text(step, title, text)


@contextlib.contextmanager
def attempted(name: str, say: Callable[[str], None]):
    """Turn a failed look into a line; where several processes look together, what one cannot do ends all."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            raise
        if os.environ.get("LM_TRACEBACK"):
            traceback.print_exc()
        reason = translate(error) or f"{type(error).__name__}: {one_line(str(error))}"
        say(f"{name} failed, the run goes on without it: {reason}")
