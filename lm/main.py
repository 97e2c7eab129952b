"""Train or fine-tune any objective.

    python -m lm.main --config=configs/NAME.py[:key=value,...] [--workdir=DIR] [--config.a.b=value ...]

The same command again goes on where the run stopped.
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
TIMEOUT = flags.DEFINE_float("distributed_timeout", 300, "seconds until all processes are there", 1, 1_000_000)


def main(default: str | None = None) -> None:
    """Parse the command line and train; `default` is the config file taken when none is named."""

    def start(overrides: list[tuple[str, str]]) -> None:
        spec = CONFIG.value or default
        check(spec is not None, "which config? --config=configs/gpt_nano.py is a good first one")
        config = load(spec)
        seed = [] if SEED.value is None else [("seed", str(SEED.value))]
        config = override(config, [*overrides, *seed])
        check(
            not config.wandb or DRY_RUN.value or importlib.util.find_spec("wandb") is not None,
            "wandb=True needs the package wandb, which is not installed: pip install wandb, or leave it out",
        )
        workdir = WORKDIR.value or f"runs/{Path(spec.partition(':')[0]).stem}"

        from lm import platform  # jax starts here: a mistake in the config is told before

        platform.prepare()
        with joined(DISTRIBUTED.value, TIMEOUT.value, Path(workdir)):
            work(config, Path(workdir), [name for name, _ in overrides])

    run(start, Config)


def work(config: Config, workdir: Path, chosen: list[str]) -> None:
    """Train, or show rows; `chosen`: fields that the command line sets."""
    if config.start:  # the network and the tokenizer are the folder's
        from lm.start.adopt import adopt

        config, lines = adopt(config, chosen)
        print("\n".join(lines))
    if DRY_RUN.value:
        from lm.preview import preview

        return print(preview(config))
    from lm.train import train

    train(config, workdir)


if __name__ == "__main__":
    main()
