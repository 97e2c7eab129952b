"""Train or fine-tune any objective.

    python -m lm.main --config=configs/NAME.py[:key=value,...] [--workdir=DIR] [--config.a.b=value ...]

The same command again resumes the run from its newest checkpoint.
"""

import importlib.util
from pathlib import Path

from absl import flags

from lm.config import Config, load, override
from lm.errors import check
from lm.flags import run
from lm.processes import joined

CONFIG = flags.DEFINE_string("config", None, "config file and its arguments: FILE.py[:key=value,...]")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run (default: runs/NAME, after the config file)")
SEED = flags.DEFINE_integer("seed", None, "seed of the run: short for --config.seed")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "show rows before and after corruption, and what a batch holds; no training")
DISTRIBUTED = flags.DEFINE_string("distributed", None, "join a cluster: 'auto', or HOST:PORT,COUNT,INDEX")
TIMEOUT = flags.DEFINE_float("distributed_timeout", 300, "seconds to wait for all processes", 1, 1_000_000)


def main(default: str | None = None) -> None:
    """Parse the command line and train; `default` is the config file taken when none is named."""

    def start(overrides: list[tuple[str, str]]) -> None:
        spec = CONFIG.value or default
        check(spec is not None, "which config? --config=configs/gpt_nano.py is a good first one")
        config = load(spec)
        # Overrides apply together, so that fields which must agree can change at once.
        seed = [] if SEED.value is None else [("seed", str(SEED.value))]
        config = override(config, [*overrides, *seed])
        check(
            not config.wandb or DRY_RUN.value or importlib.util.find_spec("wandb") is not None,
            "wandb=True needs the package wandb, which is not installed: pip install wandb, or leave it out",
        )
        workdir = WORKDIR.value or f"runs/{Path(spec.partition(':')[0]).stem}"

        from lm import platform  # jax starts here: a mistake in the config is reported before it

        platform.prepare()
        with joined(DISTRIBUTED.value, TIMEOUT.value, Path(workdir)):
            work(config, Path(workdir), [name for name, _ in overrides])

    run(start, Config)


def work(config: Config, workdir: Path, chosen: list[str]) -> None:
    """Train, or show rows; `chosen`: the fields that the command line sets."""
    if config.start:  # network and tokenizer come from the folder
        from lm.start.adopt import adopt

        config, lines = adopt(config, chosen)
        print("\n".join(lines))
    if DRY_RUN.value:
        return print(preview(config))
    from lm.train import train

    train(config, workdir)


def preview(config: Config, rows: int = 2) -> str:
    """Show the first rows of the run before and after corruption, and the arrays of a batch."""
    from lm.console import printable, table
    from lm.data.corpus.prepare import prepare
    from lm.objectives.base import resolve, training_batches

    config, corpus = resolve(config, prepare(config.data, report=print))
    rows = min(rows, config.batch)
    batch = training_batches(config, corpus, (0, rows))[0]
    shown = [config.objective.show(corpus.tokenizer, {name: x[i] for name, x in batch.items()}) for i in range(rows)]
    parts = [f"row {i + 1}\n{printable(text)}\n" for i, text in enumerate(shown)]
    arrays = [(name, " x ".join(map(str, (config.batch, *x.shape[1:]))), str(x.dtype)) for name, x in batch.items()]
    return "\n".join([*parts, table(arrays, ("batch holds", "shape", "type"))])


if __name__ == "__main__":
    main()
