"""Train or fine-tune any objective.

    python -m lm.main --config=NAME[:key=value,...] [--workdir=DIR] [--config.a.b=value ...]
    python -m lm.main --workdir=RUN

The same command again resumes the run from its newest checkpoint, and so does the folder of a run alone.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from lm import platform
from lm.config import Config, load, override
from lm.errors import check
from lm.flags import run
from lm.processes import joined

if TYPE_CHECKING:
    import numpy as np

    from lm.data.rows.records import Record

CONFIG = flags.DEFINE_string(
    "config", None, "config and its arguments: FILE.py[:key=value,...], the NAME of a file in configs/, or RUN/config.json"
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run (default: runs/NAME, after the config file)")
SHOW_CONFIG = flags.DEFINE_bool("show_config", False, "list every field with value, type and meaning; no training")
SEED = flags.DEFINE_integer("seed", None, "seed of the run: short for --config.seed")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "show rows before and after corruption, and what a batch holds; no training")
ROWS = flags.DEFINE_integer("rows", 2, "rows that --dry_run shows, and at least one that is corrupted", 1, 1000)
DISTRIBUTED = flags.DEFINE_string("distributed", None, "join a cluster: 'auto', or HOST:PORT,COUNT,INDEX")
TIMEOUT = flags.DEFINE_float("distributed_timeout", 300, "seconds to wait for all processes", 1, 1_000_000)
HEARTBEAT = flags.DEFINE_float(
    "heartbeat_timeout", 30, "seconds of silence after which a process counts as dead", 10, 1_000_000
)
STOP_STATUS = flags.DEFINE_integer("stop_status", 0, "exit status when SIGTERM ends the run before its last step: 75 tells a "
                                    "scheduler to start it again", 0, 255)  # fmt: skip


def main(default: str | None = None) -> None:
    """Parse the command line and train; `default` is the config file taken when none is named."""

    def start(overrides: list[tuple[str, str]]) -> None:
        spec = CONFIG.value or own(WORKDIR.value) or default
        check(spec is not None, "which config? --config=gpt_nano is a good first one; --workdir=RUN alone resumes a run")
        config = load(spec)
        # Overrides apply together, so that fields which must agree can change at once.
        seed = [] if SEED.value is None else [("seed", str(SEED.value))]
        config = override(config, [*overrides, *seed])
        check(
            not config.wandb or DRY_RUN.value or importlib.util.find_spec("wandb") is not None,
            "wandb=True needs the package wandb, which is not installed: pip install wandb, or leave it out",
        )
        if SHOW_CONFIG.value:
            from lm.listing import listing

            return print(listing(config))
        workdir = WORKDIR.value or f"runs/{name(spec)}"
        check("://" not in workdir, f"--workdir={workdir}: a run's folder is a path; mount the bucket as a folder")

        platform.prepare()  # jax starts here: a mistake in the config is reported before it
        with joined(DISTRIBUTED.value, TIMEOUT.value, Path(workdir), HEARTBEAT.value):
            work(config, Path(workdir), [name for name, _ in overrides])

    run(start, Config)


def own(workdir: str | None) -> str | None:
    """Return the config file of a run that exists."""
    path = Path(workdir or "") / "config.json"
    return str(path) if workdir and path.is_file() else None


def name(spec: str) -> str:
    """Return the name of a new run's folder: after the config file, or after the run whose config it is."""
    path = Path(spec.partition(":")[0])
    # Not the folder whose config it is, which would resume that run.
    return f"{path.absolute().parent.name}-again" if path.suffix == ".json" else path.stem


def work(config: Config, workdir: Path, chosen: list[str]) -> None:
    """Train, or show rows; `chosen`: the fields that the command line sets."""
    from lm.restore import adopted

    config = adopted(config, chosen)
    if DRY_RUN.value:
        return print(preview(config, ROWS.value))
    from lm.train import train

    if not train(config, workdir) and STOP_STATUS.value:
        sys.exit(STOP_STATUS.value)


def preview(config: Config, rows: int = 2) -> str:
    """Show the first `rows` rows of the run, and the first corrupted one if none of them is; then the arrays of a batch."""
    import numpy as np

    from lm.console import printable, table
    from lm.data.corpus.prepare import prepare
    from lm.objectives.base import resolve, training_batches

    config, corpus = resolve(config, prepare(config.data, report=print))
    rows, differs = min(rows, config.batch), []

    def noted(rng: np.random.Generator, record: Record) -> dict[str, np.ndarray]:
        before = np.array(record.get("tokens", ()))
        row = config.objective.corrupt(rng, record)
        differs.append(not np.array_equal(before, row.get("tokens")))
        return row

    # At a low rate many rows stay as they are: up to 64 are looked at for a corrupted one.
    batches = training_batches(config, corpus, (0, min(max(rows, 64), config.batch)))
    batches.corrupt = noted
    batch = batches[0]
    wanted = [*range(rows), *([differs.index(True)] if True in differs[rows:] and True not in differs[:rows] else [])]
    shown = [(i, config.objective.show(corpus.tokenizer, {name: x[i] for name, x in batch.items()})) for i in wanted]
    parts = [f"row {i + 1}\n{printable(text)}\n" for i, text in shown]
    arrays = [(name, " x ".join(map(str, (config.batch, *x.shape[1:]))), str(x.dtype)) for name, x in batch.items()]
    return "\n".join([*parts, table(arrays, ("batch holds", "shape", "type"))])


if __name__ == "__main__":
    main()
