"""Measure a network for a plan: sizes, and the seconds of a few steps on this machine. A process of its own:

    python -m lm.studies.measure --folder=DIR

DIR/asked.json holds the config. Writes config.json (resolved), tokenizer.json and measure.json beside it, so that a stage
which starts from this one can adopt its network before any run of it exists.
"""

from pathlib import Path

from absl import flags

from lm.flags import run

FOLDER = flags.DEFINE_string("folder", None, "folder with asked.json", required=True)


def main(overrides: list[tuple[str, str]]) -> None:
    """Measure the config of a folder."""
    from lm.studies.measuring import measure_folder  # jax, which --help must not start

    measure_folder(Path(FOLDER.value))


if __name__ == "__main__":
    run(main)
