"""What a fine-tuning run leaves behind: every held-out example with what the network said of it, measured and drawn.

    python -m lm.tasks.downstream --workdir=RUN [--step=best] [--output=DIR]

A run does this by itself at its end; the command does it again for another checkpoint or another folder. Files, of each
task of several with its name (predictions-NAME.jsonl):

    predictions.jsonl  one object an example: where, its id, gold, guess, right, confidence, probabilities
    squad.json         of questions with ids: {id: answer}, which SQuAD's own script reads
    figures.json       every figure with its error and the ends of its 95 % interval
    confusion.png      true against predicted classes or tags    reliability.png  confidence against accuracy
    errors.html        the worst errors, the surest first        learning.png     the headline figures over the steps
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.data.examples import Example, ExampleSet
from lm.data.pipeline import prefetch
from lm.outputs import replace_file
from lm.sharding import place
from lm.strict_json import dump_json
from lm.tasks.calibration import binned, expected_error
from lm.tasks.classification import confusion
from lm.tasks.errors_page import page
from lm.tasks.outcomes import ANSWERS, BINS, Form, Prediction, Row, form_of
from lm.tasks.pictures import draw_confusion, draw_reliability
from lm.tasks.replies import replies
from lm.tasks.statistics import Figures, divide, flat

PREFIX = "examples/"  # of the figures' names: others are means over rows of the batch


class Found(NamedTuple):
    """Predictions with their examples, those that count; `parts`: the rows that each was read from."""

    form: Form
    objective: Any
    predictions: list[Prediction]
    examples: list[Example]
    parts: Sequence[Sequence[Row]] = ()

    def figures(self, seed: int = 0) -> Figures:
        return self.form.measure(self.objective, self.predictions, seed)


def ask(held_out: Any, params: Any) -> Found | None:
    """Put the whole held-out split to the network; None for running text, an objective
    that says nothing of single examples, and where none of them counts.

    `held_out` is a `lm.tasks.language.HeldOut`, under its mesh; one process feeds all rows.
    """
    objective = held_out.objective
    if not isinstance(held_out.tokens, ExampleSet) or jax.process_count() > 1:
        return None
    if hasattr(objective, "reply"):
        said = [(example, [row]) for example, row in replies(objective, params, held_out.tokens.examples)]
    elif hasattr(objective, "outcomes"):
        said = outcomes(held_out, params)
    else:
        return None
    if not said:
        return None
    form = form_of(said[0][1][0])
    read = [(form.read(objective, example, rows), example, rows) for example, rows in said]
    kept = [({"where": one.where, **named(one), **found}, one, rows) for found, one, rows in read if found is not None]
    return Found(form, objective, *map(list, zip(*kept))) if kept else None


def named(example: Example) -> dict[str, Any]:
    """Give the id of an example, under that name; nothing where it has none."""
    name = example.values.get("id", "")
    return {"id": name} if isinstance(name, str | int) and name != "" else {}


def outcomes(held_out: Any, params: Any) -> list[tuple[Example, list[Any]]]:
    """Give each held-out example with the rows that the objective makes of its parts."""
    objective, stream, rows = held_out.objective, held_out.batches.stream, held_out.rows
    parts: dict[int, list] = {id(example): [] for example in stream.examples}
    unused = np.random.default_rng(0)
    for step, batch in enumerate(prefetch(held_out.batches, 0, len(held_out.batches))):
        found = jax.device_get(held_out.predict(params, place(batch, held_out.mesh, rows)))
        for row, number in enumerate(range(step * rows, min((step + 1) * rows, stream.once))):
            record = stream.held_out(unused, number)
            said = objective.outcomes(record, {name: x[row] for name, x in found.items()})
            for (example, _), one in zip(record["examples"], said, strict=True):
                parts[id(example)].append(one)
    return [(example, parts[id(example)]) for example in stream.examples if parts[id(example)]]


def squad(found: Sequence[Prediction]) -> dict[str, str]:
    """Give answers by the ids of their questions, the form that SQuAD's script reads; {} where not every one has its own."""
    answers = {str(one["id"]): one["guess"] for one in found if "id" in one}
    return answers if len(answers) == len(found) else {}


def examined(held_out: Any, params: Any, seed: int = 0) -> Figures:
    """Measure the held-out examples, `examples/NAME`, of tasks `examples/TASK/NAME`; nothing of running text."""
    return {
        PREFIX + task + name: figure
        for task, found in asked(held_out, params)
        for name, figure in found.figures(seed).items()
    }


def asked(held_out: Any, params: Any) -> list[tuple[str, Found]]:
    """`ask` each task, "" where there is one; give those that answer, by the beginning of their figures' names."""
    found = [(task, ask(one, own)) for task, one, own in held_out.alone(params)]
    return [(task, one) for task, one in found if one is not None]


def logged(held_out: Any, params: Any, folder: Path | None) -> dict[str, float]:
    """Give a running training its headline figures, `eval/validation/examples/NAME`; at its end fill the run's folder."""
    partial = held_out.count < len(held_out.batches)  # evaluate_batches asks for short looks
    headline = {}
    for task, found in [] if partial and folder is None else asked(held_out, params):
        figures = found.figures()
        if folder is not None:
            leave(found, figures, folder, task)
        headline |= {task + name: figures[name].value for name in found.form.headline if name in figures}
    return {f"eval/validation/{PREFIX}{name}": value for name, value in headline.items()}


def leave(found: Found, figures: Figures, folder: Path, task: str = "") -> list[Path]:
    """Write the files; give their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    end = task and "-" + task.strip("/")
    paths = [folder / f"predictions{end}.jsonl", folder / f"figures{end}.json", folder / f"errors{end}.html"]
    replace_file(paths[0], "".join(dump_json(one) + "\n" for one in found.predictions), "backslashreplace")
    replace_file(paths[1], dump_json(flat(figures, intervals=True), indent=1) + "\n")
    replace_file(paths[2], page(folder.absolute().name + end, found, figures), "backslashreplace")
    if found.form is ANSWERS and (answers := squad(found.predictions)):
        paths.append(folder / f"squad{end}.json")
        replace_file(paths[-1], dump_json(answers, indent=1) + "\n", "backslashreplace")
    if found.form.classes:
        paths.append(folder / f"confusion{end}.png")
        draw_confusion(*confusion(*found.form.classes(found.objective, found.predictions)), paths[-1])
    if "confidence" in found.predictions[0]:
        paths.append(folder / f"reliability{end}.png")
        reliable(found.predictions, paths[-1])
    return paths


def reliable(predictions: Sequence[Prediction], png: Path) -> None:
    """Draw how often answers of each confidence are right."""
    sure_N, right_N = (np.array([one[name] for one in predictions], float) for name in ("confidence", "right"))
    sums = binned(sure_N, right_N, BINS, "width").sum(0)
    count, confidence, right = np.split(sums, 3)
    draw_reliability(divide(confidence, count), divide(right, count), count, float(expected_error(sums)), png)


def again(workdir: Path, step: str, output: Path) -> list[Path]:
    """Write the files of a finished run once more; raises UserError where it has no labelled examples."""
    from lm.convert.run import opened
    from lm.errors import check
    from lm.tasks.language import reopened
    from lm.tasks.learning_curve import learning_curve

    config, params, _ = opened(str(workdir), None, step)
    held_out = reopened(config, workdir)
    with jax.set_mesh(held_out.mesh):
        found = asked(held_out, params)
    check(bool(found), f"'{workdir}' was trained on running text: python -m lm.evaluate --workdir={workdir}")
    paths = [path for task, one in found for path in leave(one, one.figures(), output, task)]
    log = workdir / "metrics.jsonl"
    return paths + ([output / "learning.png"] if log.exists() and learning_curve(log, output / "learning.png") else [])


if __name__ == "__main__":
    from absl import flags

    from lm.command import run

    WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best, a step")
    OUTPUT = flags.DEFINE_string("output", None, "folder for the files (default: the run's)")

    def main(overrides: list[tuple[str, str]]) -> None:
        """Write the files and name them."""
        from lm import platform
        from lm.errors import check

        check(not overrides, "lm.tasks.downstream takes no --config.* flags: a run's config is its own")
        platform.prepare()
        for path in again(Path(WORKDIR.value), STEP.value, Path(OUTPUT.value or WORKDIR.value)):
            print(path)

    run(main)
