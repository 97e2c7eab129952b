"""Predictions for examples that no run has seen: their files as the run reads its own, and the answers as objects."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from lm.config import Config
from lm.data.corpus.corpus import Corpus
from lm.data.files import Files, table_rows
from lm.data.labelled.columns import Columns, Entities
from lm.data.labelled.files import Labelled
from lm.data.labelled.questions import Questions
from lm.data.sources import components
from lm.data.text.tagged import UNIT
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import TABLES, Example, ExampleSet, ExampleSource, TextSource, format_name
from lm.errors import UserError, check, unknown
from lm.evaluation.downstream import Found, ask, squad
from lm.evaluation.held_out import held_out_of
from lm.evaluation.metrics.tagging import spans
from lm.evaluation.predictions import SPANS, TAGS, Prediction, Row, scheme_of
from lm.objectives.base import Answers, Objective, resolve
from lm.outputs import Output
from lm.saved import mesh_of
from lm.strict_json import dump_json

LINES = (".jsonl", ".ndjson")
WORDS = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".tsv", ".tab")  # words in columns
MEASURED = ("gold", "right", "error", "f1", "rule", "reference_logprob", "reference_bytes")  # need a gold label
BEST = 5  # candidates of an extracted answer


# -- run ---------------------------------------------------------------------------------------------------------------


def answers_of(objective: Objective, run: str) -> Answers:
    """Return the answers of an objective; raises UserError for one of running text."""
    if objective.answers is None:
        raise UserError(
            f"'{run}' learned from running text ({type(objective).__name__}), so it has no answers to give: "
            f"python -m lm.generate lets it write or fill in, python -m lm.evaluate --text scores texts"
        )
    return objective.answers


def select_task(config: Config, params: Any, task: str | None) -> tuple[Config, Any, ExampleSource | TextSource]:
    """Return (config, parameters, source of the training data) of one task."""
    objective, sources = config.objective.measured(), [source for _, source in components(config.data.source)]
    if not objective.apart:
        check(task is None, f"--task={task}: this run has one task; leave it out")
        return dataclasses.replace(config, objective=objective), params, sources[0]
    names = [part.name for part in objective.parts]
    check(task is not None, f"this run has several tasks: --task={' or '.join(names)}")
    if task not in names:
        raise unknown("task", task, names)
    part, source = next(pair for pair in zip(objective.parts, sources) if pair[0].name == task)
    return dataclasses.replace(config, objective=part.objective.measured()), part.params(params), source


# -- input file --------------------------------------------------------------------------------------------------------


def read_examples(path: str, objective: Any, own: ExampleSource | TextSource) -> list[Example]:
    """Read the examples of a file whose format is that of the run's `own` source; their labels become placeholders."""
    ending, answers = Path(format_name(path)).suffix, objective.answers
    kind, reads, tags = answers.kind, answers.reads, answers.form == TAGS.name
    # A tagger first: a .tsv of words in columns would else be read as a table of examples.
    if tags and (path == "-" or ending in (*WORDS, ".txt")):
        examples: Sequence[Example] = [
            example._replace(values={**example.values, objective.words: example.values["words"]})
            for example in sentences(path, objective.labels, own)
        ]
    elif answers.form == SPANS.name and ending == ".json":
        examples = Questions(path=path).open().examples
    elif ending in LINES or (ending in (*TABLES, ".json") and not tags):
        examples = read_table(path, reads, own)
    elif len(reads) == 1 and (path == "-" or ending == ".txt"):
        examples = [Example({reads[0]: line.strip()}, where) for where, line in read_lines(path) if line.strip()]
    else:
        formats = "a .jsonl file" if tags else "a .csv, .tsv or .jsonl file"
        formats += {TAGS.name: ", words in a .conll or .txt one", SPANS.name: ", or SQuAD's .json"}.get(answers.form, "")
        formats += ", or one a line in a .txt file" * (len(reads) == 1 and not tags)
        raise UserError(f"--input={path}: this {kind} reads {', '.join(map(repr, reads))}: give {formats}")
    check(bool(examples), f"{path} has no example in it; give at least one")
    for example in examples:
        missing = next((name for name in reads if name not in example.values), None)
        has = ", ".join(map(repr, example.values)) or "nothing"
        check(missing is None, f"{example.where}: no {missing!r}, which this {kind} reads; it has {has}: rename one")
    return [example._replace(values={**example.values, **objective.placeholder(example)}) for example in examples]


def read_lines(path: str) -> Iterator[tuple[str, str]]:
    """Yield (FILE:LINE, line) of a file or, for "-", of standard input."""
    return Files("/dev/stdin" if path == "-" else path).lines()


def read_table(path: str, reads: Sequence[str], own: ExampleSource | TextSource) -> Sequence[Example]:
    """Read a table or JSON lines; without a header row if the run's tables had none, and possibly without labels."""
    own = own if isinstance(own, Labelled) else Labelled(path=path)
    columns = own.columns
    # Without a header row the number of columns tells whether the file has labels.
    if columns and Path(format_name(path)).suffix in TABLES:
        name, text = next(Files(path).texts())
        _, first = next(table_rows(io.StringIO(text, newline=""), name, own.quoted), (1, []))
        columns = columns if len(first) == len(columns) else tuple(name for name in columns if name in reads)
    return dataclasses.replace(own, path=path, columns=columns).open().examples


def sentences(path: str, labels: Sequence[str], own: ExampleSource | TextSource) -> Sequence[Example]:
    """Read sentences for a tagger: in the format of its training data, in columns, one word or one sentence a line."""
    spaced = getattr(own, "spaced", True) and not isinstance(own, Entities)
    lines, columns = list(read_lines(path)), own if isinstance(own, Columns) else Columns(path=path)
    real = [line.strip() for _, line in lines if line.strip() and not line.startswith(("-DOCSTART-", "# "))]
    if path != "-" and isinstance(own, Entities) and real and all(UNIT.match(word) for word in real[0].split()):
        return dataclasses.replace(own, path=path).open().examples
    # A .txt file has a sentence a line, unless the run learned from columns in one and this one looks like that.
    plain = format_name(path).endswith(".txt")
    columnar = columns is own and own.path.lower().endswith(".txt") and is_tagged(real, labels)
    if path == "-" or (plain and not columnar):
        split = str.split if spaced else lambda line: [c for c in line if not c.isspace()]
        return [Example({"words": split(line), "spaced": spaced}, where) for where, line in lines if line.strip()]
    if path.lower().endswith(".conllu") and not isinstance(own, Columns):
        columns = dataclasses.replace(columns, word=1)
    single = bool(real) and len(real[0].split("\t" if "\t" in real[0] else columns.separator or None)) == 1
    word = 0 if single else columns.word
    # There may be no column of tags: the column of words stands in for it, as `Columns` needs both.
    return dataclasses.replace(columns, path=path, word=word, tag=word, spaced=spaced).open().examples


def is_tagged(lines: Sequence[str], labels: Sequence[str]) -> bool:
    """Return whether every line has the same number of columns, at least two, and a known tag in the last."""
    rows = [line.split() for line in lines]
    return len({len(row) for row in rows}) == 1 and all(len(row) > 1 and row[-1] in labels for row in rows)


# -- predictions -------------------------------------------------------------------------------------------------------


def predict(config: Config, params: Any, tokenizer: Tokenizer, path: str, run: str, task: str | None = None) -> Found:
    """Predict the examples of a file, in its order, on the parameters' mesh; figures against placeholders mean nothing."""
    check(jax.process_count() == 1, "lm.predict runs in one process: start it on one machine")
    config, params, own = select_task(config, params, task)
    answers_of(config.objective, run)
    examples = read_examples(path, config.objective, own)
    objective = config.objective.unbounded(tokenizer, examples)
    # The same examples on both sides: `study` reads the training side for fields left open.
    side = ExampleSet(path, examples)
    corpus = Corpus(tokenizer, ((1.0, side),), side, path, side.raw_bytes, "", Path())
    config, corpus = resolve(dataclasses.replace(config, objective=objective, evaluate_batches=0), corpus)
    mesh = mesh_of(params)
    with jax.set_mesh(mesh):
        result = ask(held_out_of(config, corpus, mesh), params)
    if result is None or len(result.predictions) != len(side):
        raise ValueError(f"{len(side)} examples and {result and len(result.predictions)} predictions")
    return result


def unlabelled(result: Found) -> list[Prediction]:
    """Return the predictions with the values that were read (a paragraph of questions left out), entities or candidate spans,
    and without those that need a label.
    """
    extras = {TAGS: entities, SPANS: candidates}.get(result.form, lambda *_: {})
    rows = []
    # Values measured against a placeholder would look like results.
    for prediction, example, parts in zip(result.predictions, result.examples, result.parts):
        kept = {name: value for name, value in prediction.items() if name not in MEASURED}
        answers = result.objective.answers
        reads = [name for name in (answers.reads if answers else ()) if name in example.values and name != "context"]
        kept |= {name: example.values[name] for name in reads if name not in kept}
        rows.append(kept | extras(result.objective, kept, example, parts))
    return rows


def entities(objective: Objective, row: Prediction, example: Example, parts: Sequence[Row]) -> dict[str, Any]:
    """Return the entities that tags encode, as spans of words, [start, stop)."""
    scheme = scheme_of(objective.labels)
    if scheme is None:
        return {}
    space = " " if example.values.get("spaced", True) else ""
    decoded = spans(row["guess"], None if scheme == "conlleval" else scheme)
    return {"entities": [{**span._asdict(), "text": space.join(row["words"][span.start : span.stop])} for span in decoded]}


def candidates(objective: Any, row: Prediction, example: Example, parts: Sequence[Row]) -> dict[str, Any]:
    """Return the best spans, and the first character of the answer in the paragraph."""
    best = objective.merge(example, parts)["candidates"]
    start = next((span["start"] for span in best if span["text"] == row["guess"]), None)
    return {"start": start, "candidates": best[:BEST]}


def write_predictions(result: Found, output: Output | None) -> None:
    """Write the predictions to a file, to .json in SQuAD's format, or to standard output."""
    if output and output.path.suffix.lower() == ".json":
        check(result.form is SPANS, f"--output={output}: SQuAD's form is of answers to questions; name it .jsonl")
        answers = squad(result.predictions)
        check(bool(answers), f"--output={output}: not every question has an id of its own; add them, or name it .jsonl")
        output.write(dump_json(answers, indent=1) + "\n")
    else:
        text = "".join(dump_json(row) + "\n" for row in unlabelled(result))
        if not output:
            sys.stdout.write(text)
            return
        output.write(text, errors="backslashreplace")
    print(f"{output}: the answers to {len(result.predictions):,} examples")
