"""Explain the predictions of a trained run or a published model on a text, as one HTML file for a browser.

    python -m lm.explain --workdir=RUN|--model=HF_DIR --text='Some text' [--target='An answer'] [--output=explain.html]

Each token's probability, the prediction of every layer, attributions to the input tokens, and attention. Causal models
read the text from left to right; masked models predict the tokens written as [MASK], or else each token in turn;
encoder-decoders answer the text, or predict --target.
"""

from pathlib import Path

from absl import flags

from lm import platform
from lm.errors import check
from lm.explain.numbers import numbers
from lm.flags import define_new_heads, define_output, output, run

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best or a step")
NEW_HEADS = define_new_heads()
TEXT = flags.DEFINE_string("text", None, "text to explain")
TARGET = flags.DEFINE_string("target", None, "target of an encoder-decoder (default: its own greedy answer)")
OUTPUT = define_output("file to write", "explain.html")
LAYERS = flags.DEFINE_string("layers", "auto", "layers whose attention is shown: 'auto' (a few MB), 'all' or numbers: 1,6,12")
ATTRIBUTE = flags.DEFINE_string(
    "attribute", "auto", "predictions with attributions: 'auto' (about a minute's worth), 'all' or numbers from 1: 3,5"
)
BASELINE = flags.DEFINE_string("baseline", "mean", "where integrated gradients start: 'mean' of the table, 'zero', or a token")
TOP = flags.DEFINE_integer("top", 5, "likeliest tokens shown of each prediction", lower_bound=1)


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, run the network, write the page."""
    check(not overrides, "lm.explain takes no --config.* flags: a run's config is its own")
    check(bool(TEXT.value), "--text='...' is missing or empty: give the text to explain")
    numbers(LAYERS.value, 1, "layers")
    numbers(ATTRIBUTE.value, 1, "attribute")
    file = output("lm.explain")

    platform.prepare()  # jax starts here: mistakes in the flags are reported before
    from lm.convert.runs import opened
    from lm.explain.explain import explain
    from lm.explain.page import page

    config, params, tokenizer = opened(WORKDIR.value, MODEL.value, STEP.value, NEW_HEADS.value)
    explanation = explain(
        config.objective, params, tokenizer, TEXT.value, target=TARGET.value, layers=LAYERS.value,
        attribute=ATTRIBUTE.value, baseline=BASELINE.value, top=TOP.value,
    )  # fmt: skip
    explanation["name"] = Path(WORKDIR.value or MODEL.value).name
    html = page(explanation)
    file.write(html)
    print(f"{file}: {len(explanation['predictions'])} predictions, {len(html) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run(main)
