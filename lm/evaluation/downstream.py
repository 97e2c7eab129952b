"""What a fine-tuning run leaves behind: every held-out example with what the network said of it, measured and drawn.

A run does this by itself at its end; `python -m lm.evaluation.again` does it for another checkpoint or another folder.
Files, of each task of several with its name (predictions-NAME.jsonl):

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

from lm.data.rows.pipeline import prefetch
from lm.data.types import Example, ExampleSet
from lm.evaluation.metrics.calibration import binned, expected_error
from lm.evaluation.metrics.classification import confusion
from lm.evaluation.metrics.statistics import Figures, divide, flat
from lm.evaluation.predictions import BINS, FORMS, SPANS, TEXTS, Form, Prediction, Row
from lm.evaluation.replies import replies
from lm.evaluation.report.errors_page import page
from lm.evaluation.report.pictures import draw_confusion, draw_reliability
from lm.outputs import replace_file
from lm.sharding import place
from lm.strict_json import dump_json

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

    `held_out` is a `lm.evaluation.held_out.HeldOut`, under its mesh; one process feeds all rows.
    """
    objective = held_out.objective
    if not isinstance(held_out.tokens, ExampleSet) or jax.process_count() > 1:
        return None
    if objective.answers is None:
        return None
    form = FORMS[objective.answers.form]
    if form is TEXTS:
        said = [(example, [row]) for example, row in replies(objective, params, held_out.tokens.examples)]
    else:
        said = outcomes(held_out, params)
    if not said:
        return None
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
    if found.form is SPANS and (answers := squad(found.predictions)):
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
