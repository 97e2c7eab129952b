"""Write the files of a finished fine-tuning run again: for another checkpoint or into another folder.

python -m lm.evaluation.again --workdir=RUN [--step=best] [--output=DIR]
"""

from pathlib import Path

from absl import flags

from lm import platform
from lm.errors import check
from lm.flags import run

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)
STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best, a step")
OUTPUT = flags.DEFINE_string("output", None, "folder for the files (default: the run's)")


def main(overrides: list[tuple[str, str]]) -> None:
    """Write the files and print their names."""
    check(not overrides, "lm.evaluation.again takes no --config.* flags: a run's config is its own")
    platform.prepare()
    from lm.evaluation.finished import again

    for path in again(Path(WORKDIR.value), STEP.value, Path(OUTPUT.value or WORKDIR.value)):
        print(path)


if __name__ == "__main__":
    run(main)
