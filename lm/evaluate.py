"""Measure a trained run or a published model.

    python -m lm.evaluate --workdir=RUN|--model=HF_DIR [--tasks=a,b] [--text='Some text' ...] [--output=F.json]

Without `--tasks` and `--text`: the run's own validation split, whole. `--text`: each token's probability given those
before it (by a masked model: given all others). Tasks are `NAME` or `NAME:FILE?option=value&...`:

    validation                      the held-out split of the run's own text
    perplexity:FILE                 running text by sliding windows (?window= &stride=); masked models: pseudo-perplexity
    last_word:FILE.jsonl            LAMBADA: {"text"}
    choices:FILE.jsonl              {"question", "choices": [...], "answer": 0} (?shots.count=5&shots.template={question})
    answers:FILE.jsonl              {"question", "answer"}, written greedily (?new=64&measure_by=text)
    pairs:FILE.jsonl                {"first", "second"}: which is likelier (?first=sentence_good&second=sentence_bad)
    noise:FILE.jsonl                {"text"} with characters or words disturbed (?how=drop_words&rate=0.1)
    texts:FILE.jsonl                {"prompt", "text"} of lm.generate --output, read by this model (?human=FILE: MAUVE)
    similarity:FILE.jsonl           {"first", "second", "score"}: sentence embeddings, STS

Of a classifier (its fields and label in JSON lines): disturbed:FILE (?how=drop_letters&rate=0.1), paraphrased:FILE
("paraphrase"), attacked:FILE?synonyms=WORDS.json, shifted:FILE?prior=0.9,0.1.

`--step=auto`, the default here and in every command that opens a run, is the checkpoint with the best figure where the run
had patience (`--config.stop.patience`): with it a run ends early, and its figures are of that one. Else it is the newest.

`python -m lm.evaluation.harness` runs the tasks of lm-evaluation-harness, `python -m lm.evaluation.report.judging` makes
sheets for human judges and reads them.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from absl import flags

from lm.errors import check
from lm.flags import define_new_heads, define_output, output, run
from lm.strict_json import dump_json

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best or a step")
NEW_HEADS = define_new_heads()
TASKS = flags.DEFINE_string("tasks", None, "what to measure, joined by commas; see above")
TEXT = flags.DEFINE_multi_string("text", [], "text whose tokens are scored, several allowed")
SPECIAL = flags.DEFINE_bool(
    "special", False, "special tokens written in a --text are these tokens, not text (always so for published folders)"
)
SEED = flags.DEFINE_integer("seed", 0, "seed of what is drawn: solved examples, noise, resamples for the errors", lower_bound=0,
                            upper_bound=2**63 - 1)  # fmt: skip
OUTPUT = define_output("write the figures to this file as JSON")


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, load the run, print tables."""
    check(not overrides, "lm.evaluate takes no --config.* flags: a run's config is its own")
    file = output("lm.evaluate")
    from lm import platform

    platform.prepare()
    from lm.convert.runs import opened
    from lm.evaluation.registry import named
    from lm.evaluation.subject import Subject

    tasks = named(TASKS.value or ("" if TEXT.value else "validation"))
    config, params, tokenizer = opened(WORKDIR.value, MODEL.value, STEP.value, NEW_HEADS.value)
    check(
        WORKDIR.value is not None or "validation" not in tasks,
        "a model folder has no held-out split of its own: name other --tasks, for example perplexity:FILE, or --text",
    )
    workdir = Path(WORKDIR.value) if WORKDIR.value else None
    subject = Subject(config, params, tokenizer, seed=SEED.value, workdir=workdir, progress=bar)
    results = {name: measured(name, task, subject) for name, task in tasks.items()}
    if TEXT.value:
        reading = tokenizer.reading_special() if SPECIAL.value else tokenizer
        results["text"] = texts(dataclasses.replace(subject, tokenizer=reading))
    if file:
        file.write(dump_json(results, indent=1) + "\n")


def measured(name: str, task: Any, subject: Any) -> dict[str, float | None]:
    """Measure and show one task."""
    from lm.console import table
    from lm.evaluation.metrics.statistics import flat

    found = task.measure(subject)
    rows = [(metric, f.value, "" if math.isnan(f.error) else f"{f.error:.2g}") for metric, f in found.items()]
    print(table(rows, (name, "value", "±")), end="\n\n")
    return flat(found)


def texts(subject: Any) -> list[dict[str, Any]]:
    """Score and show each text of the command line."""
    from lm.console import printable, table
    from lm.evaluation.perplexity import text_scores

    results = [text_scores(subject, text) for text in TEXT.value]
    for found in results:
        pairs = zip(found["tokens"], found["logprobs"])
        rows = [(printable(t).replace("\n", "\\n"), *(("", "") if p is None else (math.exp(p), p))) for t, p in pairs]
        print(table(rows, ("token", "probability", "log")))
        if found["sum"] is None:
            print("nothing precedes this text's only token: it has no probability\n")
        else:
            print(f"sum {found['sum']:.3f} nats, perplexity {found['perplexity']:.3f}\n")
    return results


def bar(what: str, count: int):
    """Show a progress bar on a terminal."""
    from lm.console import progress_bar

    return progress_bar(what, count)


if __name__ == "__main__":
    run(main)
