"""Rows of training data as people read them: `python -m lm.main --config=... --dry_run`."""

from lm.config import Config
from lm.console import printable, table
from lm.data.corpus.prepare import prepare
from lm.objectives.base import resolve, training_batches

ROWS = 2


def preview(config: Config) -> str:
    """Show the first rows of the run before and after corruption, and the arrays of a batch."""
    config, corpus = resolve(config, prepare(config.data, report=print))
    batch = training_batches(config, corpus, (0, min(ROWS, config.batch)))[0]
    parts = []
    for i in range(min(ROWS, config.batch)):
        text = config.objective.show(corpus.tokenizer, {name: x[i] for name, x in batch.items()})
        parts.append(f"row {i + 1}\n{printable(text)}\n")
    arrays = [(name, " x ".join(map(str, (config.batch, *x.shape[1:]))), str(x.dtype)) for name, x in batch.items()]
    return "\n".join([*parts, table(arrays, ("batch holds", "shape", "type"))])
