"""Answer new examples with a fine-tuned run: classes, tags, spans, options, numbers, texts. They need no labels.

    python -m lm.predict --workdir=RUN|--model=HF_DIR --input=FILE [--output=F.jsonl] [--step=auto] [--task=NAME]

FILE has the fields that the run reads, in .csv or .tsv (as the run's own: with a first row of names, or without) or .jsonl:

    .txt, or -     for runs that read one text: one a line (-: standard input); for taggers one sentence a line, its words
                   parted by spaces (where the run's words have none between them, every character is one)
    .conll .tsv    for taggers: words in columns, as the run's own, or one word a line; blank lines between sentences
                   (.bio .iob .iob2 .conllu .tab too)
    .json          questions about paragraphs in SQuAD's form

Labels in it are not looked at. Each example becomes one JSON object, in the file's order, on the screen or in --output: what
the run's predictions.jsonl says of its held-out ones, without what needs a label; of tags that are spans also "entities",
of answers the place where they begin, "start", and the best few with their scores, "candidates". --output=F.json, of a
reader, writes {id: answer} instead, which SQuAD's own script takes.
"""

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
from lm.data.files import Files, expand, table_rows
from lm.data.labelled.columns import Columns, Entities
from lm.data.labelled.files import Labelled
from lm.data.labelled.questions import Questions
from lm.data.sources import components
from lm.data.text.tagged import UNIT
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example, ExampleSet
from lm.errors import UserError, check, unknown
from lm.evaluation.downstream import Found, ask, squad
from lm.evaluation.held_out import held_out_of
from lm.evaluation.metrics.tagging import spans
from lm.evaluation.predictions import SPANS, TAGS, Prediction, Row, scheme_of
from lm.objectives.base import Answers, resolve
from lm.outputs import Output
from lm.sharding import AXES, make_mesh
from lm.strict_json import dump_json

TABLES, LINES = (".csv", ".tsv", ".tab"), (".jsonl", ".ndjson")
WORDS = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".tsv", ".tab")  # words in columns
MEASURED = ("gold", "right", "error", "f1", "rule", "reference_logprob", "reference_bytes")  # against a label
BEST = 5  # candidates of an answer


# -- what is asked -----------------------------------------------------------------------------------------------------


def answers_of(objective: Any, run: str) -> Answers:
    """Return how an objective answers examples; raises UserError for one of running text."""
    if objective.answers is None:
        raise UserError(
            f"'{run}' learned from running text ({type(objective).__name__}), so it has no answers to give: "
            f"python -m lm.generate lets it write or fill in, python -m lm.evaluate --text scores texts"
        )
    return objective.answers


def of_task(config: Config, params: Any, task: str | None) -> tuple[Config, Any, Any]:
    """Take one task of a run that has several: (config, parameters, the source of its training examples)."""
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


# -- what a file holds -------------------------------------------------------------------------------------------------


def read(path: str, objective: Any, own: Any) -> list[Example]:
    """Read the examples of a file, which is like those of the run's `own` source; raises UserError where it is not."""
    ending, kind, reads = Path(path).suffix.lower(), objective.answers.kind, objective.answers.reads
    if kind == "tagger" and (path == "-" or ending in (*WORDS, ".txt")):
        plain = sentences(path, objective.labels, own)
        found = [one._replace(values={**one.values, objective.words: one.values["words"]}) for one in plain]
    elif kind == "reader" and ending == ".json":
        found = Questions(path=path).open().examples
    elif ending in LINES or (ending in (*TABLES, ".json") and kind != "tagger"):
        found = table(path, reads, own)
    elif len(reads) == 1 and (path == "-" or ending == ".txt"):
        found = [Example({reads[0]: line.strip()}, where) for where, line in read_lines(path) if line.strip()]
    else:
        forms = "a .jsonl file" if kind == "tagger" else "a .csv, .tsv or .jsonl file"
        forms += {"tagger": ", words in a .conll or .txt one", "reader": ", or SQuAD's .json"}.get(kind, "")
        forms += ", or one a line in a .txt file" * (len(reads) == 1 and kind != "tagger")
        raise UserError(f"--input={path}: this {kind} reads {', '.join(map(repr, reads))}: give {forms}")
    check(bool(found), f"{path} has no example in it; give at least one")
    for one in found:
        lacking = next((name for name in reads if name not in one.values), None)
        has = ", ".join(map(repr, one.values)) or "nothing"
        check(lacking is None, f"{one.where}: no {lacking!r}, which this {kind} reads; it has {has}: rename one")
    return [one._replace(values={**one.values, **objective.placeholder(one)}) for one in found]


def read_lines(path: str) -> Iterator[tuple[str, str]]:
    return Files("/dev/stdin" if path == "-" else path).lines()


def table(path: str, reads: Sequence[str], own: Any) -> Sequence[Example]:
    """Read rows and JSON lines. Where the run's tables had no row of names, this one has none, and perhaps no labels."""
    own = own if isinstance(own, Labelled) else Labelled(path=path)
    columns, ending = own.columns, Path(path).suffix.lower()
    if columns and ending in TABLES:
        name, text = next(Files(path).texts())
        _, first = next(table_rows(io.StringIO(text, newline=""), name, own.quoted), (1, []))
        columns = columns if len(first) == len(columns) else tuple(name for name in columns if name in reads)
    return dataclasses.replace(own, path=path, columns=columns).open().examples


def sentences(path: str, labels: Sequence[str], own: Any) -> Sequence[Example]:
    """Read sentences: words with tags as the run's own have them, words in columns, one word or one sentence a line."""
    spaced = getattr(own, "spaced", True) and not isinstance(own, Entities)
    found, columns = list(read_lines(path)), own if isinstance(own, Columns) else Columns(path=path)
    real = [line.strip() for _, line in found if line.strip() and not line.startswith(("-DOCSTART-", "# "))]
    if path != "-" and isinstance(own, Entities) and real and all(UNIT.match(word) for word in real[0].split()):
        return dataclasses.replace(own, path=path).open().examples
    named = path.lower().endswith(".txt")
    below = path != "-" and (not named or (columns is own and own.path.lower().endswith(".txt") and is_tagged(real, labels)))
    if not below:
        split = str.split if spaced else lambda line: [c for c in line if not c.isspace()]
        return [Example({"words": split(line), "spaced": spaced}, where) for where, line in found if line.strip()]
    if path.lower().endswith(".conllu") and not isinstance(own, Columns):
        columns = dataclasses.replace(columns, word=1)
    alone = bool(real) and len(real[0].split("\t" if "\t" in real[0] else columns.separator or None)) == 1
    word = 0 if alone else columns.word
    # There may be no column of tags: that of the words does for it.
    return dataclasses.replace(columns, path=path, word=word, tag=word, spaced=spaced).open().examples


def is_tagged(real: Sequence[str], labels: Sequence[str]) -> bool:
    """Tell words with tags below each other, for a run that learned from such a .txt file, from sentences."""
    rows = [line.split() for line in real]
    return len({len(row) for row in rows}) == 1 and all(len(row) > 1 and row[-1] in labels for row in rows)


# -- what is answered --------------------------------------------------------------------------------------------------


def predict(config: Config, params: Any, tokenizer: Tokenizer, path: str, run: str, task: str | None = None) -> Found:
    """Answer the examples of a file, in its order, on this machine's first device; of their figures none means anything."""
    check(jax.process_count() == 1, "lm.predict runs in one process: start it on one machine")
    config, params, own = of_task(config, params, task)
    answers_of(config.objective, run)
    examples = read(path, config.objective, own)
    objective = config.objective.unbounded(tokenizer, examples)
    given = ExampleSet(path, examples)  # as both sides: `study` looks at that of training where something was left open
    corpus = Corpus(tokenizer, ((1.0, given),), given, path, given.raw_bytes, "", Path())
    config, corpus = resolve(dataclasses.replace(config, objective=objective, evaluate_batches=0), corpus)
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        found = ask(held_out_of(config, corpus, mesh), params)
    if found is None or len(found.predictions) != len(given):
        raise ValueError(f"{len(given)} examples and {found and len(found.predictions)} answers")
    return found


def told(found: Found) -> list[Prediction]:
    """Say of each example what can be said without its label, and a little more."""
    more = {TAGS: entities, SPANS: candidates}.get(found.form, lambda *_: {})
    rows = []
    for prediction, example, parts in zip(found.predictions, found.examples, found.parts):
        kept = {name: value for name, value in prediction.items() if name not in MEASURED}
        rows.append(kept | more(found.objective, kept, example, parts))
    return rows


def entities(objective: Any, row: Prediction, example: Example, parts: Sequence[Row]) -> dict[str, Any]:
    """List the spans that tags write, in words from 0, `stop` behind the last."""
    scheme = scheme_of(objective.labels)
    if scheme is None:
        return {}
    between = " " if example.values.get("spaced", True) else ""
    found = spans(row["guess"], None if scheme == "conlleval" else scheme)
    return {"entities": [{**one._asdict(), "text": between.join(row["words"][one.start : one.stop])} for one in found]}


def candidates(objective: Any, row: Prediction, example: Example, parts: Sequence[Row]) -> dict[str, Any]:
    """List the best spans, and say at which character of the paragraph the answer begins."""
    offers = objective.merge(example, parts)["candidates"]
    start = next((one["start"] for one in offers if one["text"] == row["guess"]), None)
    return {"start": start, "candidates": offers[:BEST]}


def write(found: Found, output: Output | None) -> None:
    """Write the answers to a file, one of SQuAD's form where it is named so, or to the screen."""
    if output and output.path.suffix.lower() == ".json":
        check(found.form is SPANS, f"--output={output}: SQuAD's form is of answers to questions; name it .jsonl")
        answers = squad(found.predictions)
        check(bool(answers), f"--output={output}: not every question has an id of its own; add them, or name it .jsonl")
        output.write(dump_json(answers, indent=1) + "\n")
    else:
        text = "".join(dump_json(one) + "\n" for one in told(found))
        if not output:
            sys.stdout.write(text)
            return
        output.write(text, errors="backslashreplace")
    print(f"{output}: the answers to {len(found.predictions):,} examples")


if __name__ == "__main__":
    from absl import flags

    from lm.flags import define_new_heads, define_output, output, run

    WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
    MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
    STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best, a step")
    NEW_HEADS = define_new_heads()
    INPUT = flags.DEFINE_string("input", None, "file of examples, or - for lines of standard input; see above", required=True)
    TASK = flags.DEFINE_string("task", None, "of a run with several tasks: the one to answer for")
    define_output("write to this file: one JSON object an example; .json: SQuAD's form")

    def main(overrides: list[tuple[str, str]]) -> None:
        """Read the flags, load the run, answer."""
        from lm import platform

        check(not overrides, "lm.predict takes no --config.* flags: a run's config is its own")
        file = output("lm.predict", [] if INPUT.value == "-" else expand(INPUT.value))
        check(INPUT.value == "-" or bool(expand(INPUT.value)), f"--input={INPUT.value}: there is no such file")
        platform.prepare()
        from lm.convert.runs import opened

        loaded = opened(WORKDIR.value, MODEL.value, STEP.value, NEW_HEADS.value)
        write(predict(*loaded, INPUT.value, WORKDIR.value or MODEL.value, TASK.value), file)

    run(main)
