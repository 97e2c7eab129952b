"""Explain the predictions of a trained run or a published model on a text, as one HTML file for a browser.

    python -m lm.explain --workdir=RUN|--model=HF_DIR --text='Some text' [--target='An answer'] [--output=explain.html]
    python -m lm.explain --workdir=RUN --text='Some text' --beside=RUN|HF_DIR --lens_text=FILE|train --probe=FILE

Each token's probability and alternatives, the prediction of every layer, attributions to the input tokens, attention, the
loss without each head and the neurons that matter most; the nearest tokens of the embedding table, and a map of them.
Causal models read the text from left to right; masked models predict the tokens written as [MASK], or else each token in
turn; encoder-decoders answer the text, or predict --target.

Classifiers, taggers, readers and the like explain the labels they predict, or --label, and list the nearest training
examples. Where they read several values, give a JSON object: --text='{"question": "...", "context": "..."}'.
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
LABEL = flags.DEFINE_string("label", None, "label to explain in place of the predicted ones")
TASK = flags.DEFINE_string("task", None, "task to explain, in a run of several tasks")
BESIDE = flags.DEFINE_string("beside", None, "another run or model folder, whose log-probabilities of the text are compared")
TUNED_LENS = flags.DEFINE_string("tuned_lens", "auto", "its file; 'auto': tuned_lens.safetensors in the run's folder; 'none'")
LENS_TEXT = flags.DEFINE_string("lens_text", None, "train a tuned lens that has no file: on this one, or 'train', the run's")
WORDS = flags.DEFINE_list("words", [], "tokens whose nearest in the embedding table are shown (default: those of the text)")
PROBE = flags.DEFINE_string("probe", None, "labelled texts (.csv .tsv .jsonl: text, label) or words (.conll) to probe for")
TRAINING = flags.DEFINE_integer("training", 2000, "training examples searched for the nearest ones (0: none)", lower_bound=0)
ABLATE = flags.DEFINE_enum("ablate", "auto", ["auto", "all", "none"], "loss without each head: 'auto' (about a minute's worth)")
NEURONS = flags.DEFINE_integer("neurons", 20, "neurons whose ablation is computed, by their estimates", lower_bound=0)
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
    from lm.explain.contents import Options, contents
    from lm.explain.page import page

    loaded, beside = opened(WORKDIR.value, MODEL.value, STEP.value, NEW_HEADS.value), None
    if BESIDE.value:
        is_run = (Path(BESIDE.value) / "checkpoints").is_dir()
        run_folder, model_folder = (BESIDE.value, None) if is_run else (None, BESIDE.value)
        beside = Path(BESIDE.value).name, opened(run_folder, model_folder, "auto", NEW_HEADS.value)
    options = Options(
        target=TARGET.value or "", label=LABEL.value or "", task=TASK.value or "", layers=LAYERS.value,
        attribute=ATTRIBUTE.value,
        baseline=BASELINE.value, top=TOP.value, training=TRAINING.value, ablate=ABLATE.value, neurons=NEURONS.value,
        tuned_lens=TUNED_LENS.value, lens_text=LENS_TEXT.value or "", words=tuple(WORDS.value), probe=PROBE.value or "",
    )  # fmt: skip
    explanation = contents(loaded, TEXT.value, options, Path(WORKDIR.value or MODEL.value), beside)
    html = page(explanation)
    file.write(html)
    print(f"{file}: {len(explanation['predictions'])} predictions, {len(html) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run(main)
