"""Measure a trained run or a published model.

    python -m lm.evaluate --workdir=RUN|--model=HF_DIR [--tasks=a,b] [--text='Some text' ...] [--output=F.json]

Without `--tasks` and `--text`: the run's own validation split. `--text`: each token's probability given the tokens before
it (by a masked model: given all others). `python -m lm.evaluate --help` lists the tasks, `NAME` or `NAME:FILE`, with options
as `?option=value&...`; FILE is JSON lines with the named fields, or a table with such columns.

`--step=auto`, the default of every command that opens a run, is the checkpoint of the best figure if the run stops early
(`--config.stop.patience`), else the newest.

`python -m lm.evaluation.harness` runs the tasks of lm-evaluation-harness, `python -m lm.evaluation.report.judging` writes
and reads sheets for human judges.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from lm import platform
from lm.errors import check
from lm.flags import define_mesh, define_new_heads, define_output, output, run
from lm.strict_json import dump_json

if TYPE_CHECKING:  # jax starts after the flags are checked
    from lm.evaluation.subject import Subject, Task

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best or a step")
NEW_HEADS = define_new_heads()
MESH = define_mesh()
TASKS = flags.DEFINE_string("tasks", None, "tasks to measure, separated by commas; listed above")
TEXT = flags.DEFINE_multi_string("text", [], "text whose tokens are scored, several allowed")
SPECIAL = flags.DEFINE_bool(
    "special", False, "parse names of special tokens in a --text as these tokens (published folders always do)"
)
SEED = flags.DEFINE_integer("seed", 0, "seed of solved examples, noise and resamples", lower_bound=0,
                            upper_bound=2**63 - 1)  # fmt: skip
OUTPUT = define_output("write the figures to this file as JSON")


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, load the run, print tables."""
    check(not overrides, "lm.evaluate takes no --config.* flags: a run's config is its own")
    file = output("lm.evaluate")

    platform.prepare()
    from lm.console import progress_bar
    from lm.convert.runs import opened
    from lm.evaluation.registry import named
    from lm.evaluation.subject import Subject

    # Before the model is opened, which may take minutes: a wrong name is reported at once.
    tasks = named(TASKS.value or ("" if TEXT.value else "validation"))
    config, params, tokenizer = opened(WORKDIR.value, MODEL.value, STEP.value, NEW_HEADS.value, MESH.value)
    check(
        WORKDIR.value is not None or "validation" not in tasks,
        "a model folder has no held-out split: name other --tasks, for example perplexity:FILE, or --text",
    )
    workdir = Path(WORKDIR.value) if WORKDIR.value else None
    subject = Subject(config, params, tokenizer, seed=SEED.value, workdir=workdir, progress=progress_bar)
    results: dict[str, Any] = {name: measured(name, task, subject) for name, task in tasks.items()}
    if TEXT.value:
        # For --text alone: the texts of tasks stay text.
        reading = tokenizer.reading_special() if SPECIAL.value else tokenizer
        results["text"] = texts(dataclasses.replace(subject, tokenizer=reading))
    if file:
        file.write(dump_json(results, indent=1) + "\n")


def measured(name: str, task: Task, subject: Subject) -> dict[str, float | None]:
    """Measure one task and print its table."""
    from lm.console import table
    from lm.evaluation.metrics.statistics import flat

    figures = task.measure(subject)
    rows = [(metric, f.value, "" if math.isnan(f.error) else f"{f.error:.2g}") for metric, f in figures.items()]
    print(table(rows, (name, "value", "±")), end="\n\n")
    return flat(figures)


def texts(subject: Subject) -> list[dict[str, Any]]:
    """Score each --text and print its tokens."""
    from lm.console import printable, table
    from lm.evaluation.perplexity import text_scores

    results = [text_scores(subject, text) for text in TEXT.value]
    for scored in results:
        pairs = zip(scored["tokens"], scored["logprobs"])
        rows = [(printable(t).replace("\n", "\\n"), *(("", "") if p is None else (math.exp(p), p))) for t, p in pairs]
        print(table(rows, ("token", "probability", "log")))
        if scored["sum"] is None:
            print("nothing precedes this text's only token: it has no probability\n")
        else:
            print(f"sum {scored['sum']:.3f} nats, perplexity {scored['perplexity']:.3f}\n")
    return results


if __name__ == "__main__":
    if {"--help", "--helpshort", "--helpfull", "-help", "-?"} & {*sys.argv}:  # only help pays for importing every task
        from lm.evaluation.registry import described

        __doc__ += f"\nTasks:\n\n{described()}\n"
    run(main)
