"""Predictions, figures and pictures of a fine-tuning run's held-out examples.

A run writes them at its end; `python -m lm.evaluation.again` writes them for another checkpoint or folder. With several
tasks each file carries the task's name (predictions-NAME.jsonl):

    predictions.jsonl  one object an example: where, its id, gold, guess, right, confidence, probabilities
    squad.json         of questions with ids: {id: answer}, the input of SQuAD's own script
    figures.json       every figure with its error and 95 % interval
    confusion.png      true against predicted classes or tags    reliability.png  accuracy against confidence
    errors.html        the worst errors, most confident first    learning.png     headline figures over steps
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.data.rows.pipeline import prefetch
from lm.data.types import Example, ExampleSet
from lm.evaluation.metrics.calibration import binned
from lm.evaluation.metrics.classification import confusion
from lm.evaluation.metrics.statistics import Figures, flat
from lm.evaluation.predictions import BINS, FORMS, SPANS, TEXTS, Found, Prediction
from lm.evaluation.replies import replies
from lm.evaluation.report.errors_page import page
from lm.evaluation.report.facets import Run
from lm.evaluation.report.pictures import draw_confusion, draw_reliability
from lm.outputs import replace_file
from lm.sharding import place
from lm.strict_json import dump_json

PREFIX = "examples/"  # sets figures of examples apart from means over a batch's rows


def ask(held_out: Any, params: Any) -> Found | None:
    """Predict the whole held-out split under its mesh, one of this process's devices (`HeldOut.own`).

    None without labelled examples or predictions.
    """
    objective = held_out.objective
    if not isinstance(held_out.tokens, ExampleSet):
        return None
    if objective.answers is None:
        return None
    form = FORMS[objective.answers.form]
    if form is TEXTS:
        rows_of = [(example, [row]) for example, row in replies(objective, params, held_out.tokens.examples)]
    else:
        rows_of = outcomes(held_out, params)
    read = [(form.read(objective, example, rows), example, rows) for example, rows in rows_of]
    kept = [({"where": e.where, **id_of(e), **prediction}, e, rows) for prediction, e, rows in read if prediction is not None]
    return Found(form, objective, *map(list, zip(*kept))) if kept else None


def id_of(example: Example) -> dict[str, Any]:
    """Return {"id": id} of an example, {} if it has none."""
    name = example.values.get("id", "")
    return {"id": name} if isinstance(name, str | int) and name != "" else {}


def outcomes(held_out: Any, params: Any) -> list[tuple[Example, list[Any]]]:
    """Run the network on the split; return each example with the objective's rows of its parts."""
    objective, stream, rows = held_out.objective, held_out.batches.stream, held_out.rows
    # By identity, as equal examples may occur twice; a long example has an outcome for each of its rows.
    parts: dict[int, list] = {id(example): [] for example in stream.examples}
    unused = np.random.default_rng(0)  # corruption of labelled rows draws nothing in evaluation
    for step, batch in enumerate(prefetch(held_out.batches, 0, len(held_out.batches))):
        predicted = jax.device_get(held_out.predict(params, place(batch, held_out.mesh, rows)))
        # The last batch is filled up to the shape that is compiled: its rows behind `once` are no further examples.
        for row, number in enumerate(range(step * rows, min((step + 1) * rows, stream.once))):
            record = stream.held_out(unused, number)
            outcomes = objective.outcomes(record, {name: x[row] for name, x in predicted.items()})
            for (example, _), outcome in zip(record["examples"], outcomes, strict=True):
                parts[id(example)].append(outcome)
    return [(example, parts[id(example)]) for example in stream.examples if parts[id(example)]]


def squad(predictions: Sequence[Prediction]) -> dict[str, str]:
    """Map question ids to answers, the input of SQuAD's script; {} unless every question has an id of its own."""
    answers = {str(p["id"]): p["guess"] for p in predictions if "id" in p}
    return answers if len(answers) == len(predictions) else {}


def examined(held_out: Any, params: Any, seed: int = 0) -> Figures:
    """Measure the held-out examples: `examples/NAME`, of several tasks `examples/TASK/NAME`; {} for running text."""
    return {
        PREFIX + task + name: figure for task, found in asked(held_out, params) for name, figure in found.figures(seed).items()
    }


def asked(held_out: Any, params: Any) -> list[tuple[str, Found]]:
    """Predict every task; return (metric prefix, predictions) of those with labelled examples, "" for a single task."""
    predicted = [(task, ask(part, own)) for task, part, own in held_out.alone(params)]
    return [(task, found) for task, found in predicted if found is not None]


def logged(held_out: Any, params: Any, folder: Path | None) -> dict[str, float]:
    """Measure headline figures in training, `eval/validation/examples/NAME`; with a folder, at the end, write all files."""
    partial = held_out.count < len(held_out.batches)  # evaluate_batches keeps evaluations in training short
    headline: dict[str, Any] = {}
    for task, found in [] if partial and folder is None else asked(held_out, params):
        figures = found.figures()
        if folder is not None and jax.process_index() == 0:
            leave(found, figures, folder, task)
        headline |= {task + name: figures[name].value for name in found.form.headline if name in figures}
    return {f"eval/validation/{PREFIX}{name}": value for name, value in headline.items()}


def leave(found: Found, figures: Figures, folder: Path, task: str = "", run: Run | None = None) -> list[Path]:
    """Write the files of one task; return their paths. `run`: the run that predicted (default: that in `folder`)."""
    folder.mkdir(parents=True, exist_ok=True)
    end = task and "-" + task.strip("/")
    paths = [folder / f"predictions{end}.jsonl", folder / f"figures{end}.json", folder / f"errors{end}.html"]
    # A character without bytes in UTF-8, half a surrogate pair, must not cost the whole file.
    replace_file(paths[0], "".join(dump_json(p) + "\n" for p in found.predictions), "backslashreplace")
    replace_file(paths[1], dump_json(flat(figures, intervals=True), indent=1) + "\n")
    run = (run or Run(str(folder)))._replace(task=task.strip("/"))
    replace_file(paths[2], page(folder.absolute().name + end, found, figures, run), "backslashreplace")
    if found.form is SPANS and (answers := squad(found.predictions)):
        paths.append(folder / f"squad{end}.json")
        replace_file(paths[-1], dump_json(answers, indent=1) + "\n", "backslashreplace")
    if found.form.classes:
        paths.append(folder / f"confusion{end}.png")
        draw_confusion(*confusion(*found.form.classes(found.objective, found.predictions)), paths[-1])
    if "confidence" in found.predictions[0]:
        paths.append(folder / f"reliability{end}.png")
        confidence_N, right_N = (np.array([p[name] for p in found.predictions], float) for name in ("confidence", "right"))
        draw_reliability(binned(confidence_N, right_N, BINS, "width").sum(0), paths[-1])
    return paths
