"""Read and write model folders in Hugging Face's layout.

python -m lm.convert --model=HF_DIR --workdir=RUN      # a run from a folder
python -m lm.convert --workdir=RUN --output=HF_DIR     # a folder from a run
python -m lm.convert --check --model=HF_DIR            # layer by layer beside transformers
python -m lm.convert --model=HF_DIR --tokenizer=PATH|--add_tokens=FILE --output=HF_DIR2|--workdir=RUN   # other tokens
"""

from pathlib import Path
from typing import Any

from absl import flags

from lm import platform
from lm.errors import check
from lm.flags import define_mesh, run

MODEL = flags.DEFINE_string("model", None, "model folder to read")
WORKDIR = flags.DEFINE_string("workdir", None, "run to make, or to write as a folder")
OUTPUT = flags.DEFINE_string("output", None, "model folder to write")
STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best or a step")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "replace the vocabulary by this tokenizer's; shared pieces keep their rows")
ADD_TOKENS = flags.DEFINE_string("add_tokens", None, "file of tokens, one a line, to add to the vocabulary")
INITIALISE = flags.DEFINE_enum(
    "initialise", "overlap", ["overlap", "mean", "random"],
    "rows of new tokens: mean of their old pieces, drawn with the old rows' mean and covariance, or drawn as a new model's",
)  # fmt: skip
PAD_VOCAB = flags.DEFINE_integer("pad_vocab", 0, "make the vocabulary's rows a multiple of this")
SEED = flags.DEFINE_integer("seed", 0, "seed of drawn rows")
MESH = define_mesh()
CHECK = flags.DEFINE_bool("check", False, "compare every layer with transformers, which must be installed")


def main(overrides: list[tuple[str, str]]) -> None:
    """Dispatch on the flags and print the result."""
    check(not overrides, "lm.convert takes no --config.* flags")

    platform.prepare()
    if CHECK.value:
        check(bool(MODEL.value), "--check needs --model=HF_DIR")
        from lm.convert.compare import compare

        return print(compare(MODEL.value))
    from lm.convert.runs import export_run, import_run

    if TOKENIZER.value or ADD_TOKENS.value or PAD_VOCAB.value:
        from lm.convert.vocabulary import convert

        new: dict[str, Any] = {"tokenizer": TOKENIZER.value, "add_tokens": ADD_TOKENS.value, "initialise": INITIALISE.value}
        ends = MODEL.value, WORKDIR.value, OUTPUT.value, STEP.value
        return print("\n".join(convert(*ends, **new, multiple=PAD_VOCAB.value or 1, seed=SEED.value)))
    if OUTPUT.value:
        check(bool(WORKDIR.value) and not MODEL.value, "--output=HF_DIR is written from --workdir=RUN")
        return print(export_run(Path(WORKDIR.value), Path(OUTPUT.value), STEP.value, MESH.value))
    check(bool(MODEL.value and WORKDIR.value), "--model=HF_DIR --workdir=RUN reads; --workdir=RUN --output=HF_DIR writes")
    print("\n".join(import_run(MODEL.value, Path(WORKDIR.value))))
    return None


if __name__ == "__main__":
    run(main)
