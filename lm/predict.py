"""Predict the labels of new examples with a fine-tuned run: classes, tags, spans, options, numbers, texts.

    python -m lm.predict --workdir=RUN|--model=HF_DIR --input=FILE [--output=F.jsonl] [--step=auto] [--task=NAME]

FILE has the run's input fields, in .csv or .tsv (like the run's own, with a header row or without) or .jsonl:

    .txt, or -     for runs that read one text: one a line (-: standard input); for taggers one sentence a line, words
                   separated by spaces (in a language without spaces every character is a word)
    .conll .tsv    for taggers: words in columns like the run's own, or one word a line; blank lines between sentences
                   (.bio .iob .iob2 .conllu .tab too)
    .json          questions about paragraphs in SQuAD's format

Labels in it are ignored. Each example becomes one JSON object, in the file's order, on standard output or in --output:
that of the run's predictions.jsonl without the values that need a label. Tags that encode spans add "entities"; extracted
answers add "start", their first character, and "candidates", the best few with their scores. --output=F.json writes
{id: answer} of extracted answers, the input of SQuAD's own script.
"""

from absl import flags

from lm import platform
from lm.data.files import expand
from lm.errors import check
from lm.flags import define_mesh, define_new_heads, define_output, output, run

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best, a step")
NEW_HEADS = define_new_heads()
MESH = define_mesh()
INPUT = flags.DEFINE_string("input", None, "file of examples, or - for lines of standard input; see above", required=True)
TASK = flags.DEFINE_string("task", None, "task to predict, in a run of several tasks")
define_output("write to this file: one JSON object an example; .json: SQuAD's format")


def main(overrides: list[tuple[str, str]]) -> None:
    """Load the run that the flags name, and predict."""
    check(not overrides, "lm.predict takes no --config.* flags: a run's config is its own")
    file = output("lm.predict", [] if INPUT.value == "-" else expand(INPUT.value))
    check(INPUT.value == "-" or bool(expand(INPUT.value)), f"--input={INPUT.value}: there is no such file")
    platform.prepare()
    from lm.convert.runs import opened
    from lm.evaluation.new_examples import predict, write_predictions

    loaded = opened(WORKDIR.value, MODEL.value, STEP.value, NEW_HEADS.value, MESH.value)
    write_predictions(predict(*loaded, INPUT.value, str(WORKDIR.value or MODEL.value), TASK.value), file)


if __name__ == "__main__":
    run(main)
