"""Continue text, answer, or fill masks, with a trained run or a published model.

    python -m lm.generate --workdir=RUN|--model=HF_DIR --prompt='Once upon a time' [--strategy=NAME] [--output=F.jsonl]
    python -m lm.generate --model=HF_DIR --prompts=FILE.txt|FILE.jsonl --output=F.jsonl     thousands of prompts, resumable

Strategies: greedy and sample (the default) take one token after another; beam searches; contrastive avoids repetition;
speculative lets a small model (--draft) propose; fill, gibbs (masked models) and mask_predict (conditional ones) fill in.
"""

from pathlib import Path

from absl import flags

from lm.errors import UserError, check, unknown
from lm.flags import define_new_heads, define_output, output, run
from lm.strict_json import dump_json

STEPWISE, WRITING = ("greedy", "sample"), ("greedy", "sample", "beam", "contrastive", "speculative")
STRATEGIES = (*WRITING, "fill", "gibbs", "mask_predict")
DRAWN = ("sample", "speculative")

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best or a step")
NEW_HEADS = define_new_heads()
PROMPT = flags.DEFINE_multi_string("prompt", [""], "text to continue, several allowed; empty begins a document")
PROMPTS = flags.DEFINE_string(
    "prompts", None, 'file of prompts: one a line, or .jsonl with "prompt" or "messages"; needs --output'
)
STRATEGY = flags.DEFINE_string("strategy", "sample", f"one of {', '.join(STRATEGIES)}")
NEW = flags.DEFINE_integer("max_new_tokens", None, "longest continuation (default: 256, or what the context leaves)",
                            lower_bound=1, upper_bound=10_000_000)  # fmt: skip
STOP = flags.DEFINE_multi_string("stop", [], "text that ends a continuation and is cut off, several allowed")
SEED = flags.DEFINE_integer("seed", 0, "seed of the draws", lower_bound=0, upper_bound=2**63 - 1)
OUTPUT = define_output("write the samples to this file, one JSON object a line")
SPECIAL = flags.DEFINE_bool(
    "special", False, "special tokens written in a prompt are these tokens, not text (always so for published folders)"
)
SHOW = flags.DEFINE_bool("show_probabilities", False, "colour each token by its probability, or list them")
CHAT = flags.DEFINE_bool("chat", False, "the prompt is what a user says; lay it out by the model's chat template")
SYSTEM = flags.DEFINE_string("system", None, "with --chat: what the system message says")
REGEX = flags.DEFINE_string("regex", None, "regular expression that the whole new text follows")
SCHEMA = flags.DEFINE_string("json_schema", None, "JSON schema, or its file, that the new text is an instance of")
DRAFT = flags.DEFINE_string("draft", None, "speculative: run or model folder of the small model that proposes")

# Options of some strategies only; None: not given. (name, kind, strategies, help)
OPTIONS = (
    ("temperature", float, (*DRAWN, "gibbs"), "divides the scores: below 1 safer, above 1 wilder"),
    (
        "top_k",
        int,
        (*DRAWN, "contrastive", "gibbs", "fill"),
        "draw from the k likeliest tokens; fill: candidates to show",
    ),
    ("top_p", float, DRAWN, "draw from the likeliest tokens that together have this probability"),
    ("min_p", float, DRAWN, "draw from tokens at least this share as probable as the likeliest"),
    ("typical_p", float, DRAWN, "draw from the most typical tokens that together have this probability"),
    ("epsilon", float, DRAWN, "draw from tokens of at least this probability"),
    ("eta", float, DRAWN, "the same, but less where the model is unsure"),
    ("num_samples", int, (*DRAWN, "beam", "gibbs", "mask_predict"), "texts for each prompt (beam: the best ones)"),
    ("repetition_penalty", float, WRITING, "above 1: tokens of the text so far become less likely (CTRL)"),
    ("encoder_repetition_penalty", float, WRITING, "above 1: tokens of the prompt or source become likelier"),
    ("frequency_penalty", float, WRITING, "taken off a score for each time the token was generated"),
    ("presence_penalty", float, WRITING, "taken off a score if the token was generated at all"),
    ("no_repeat_ngram", int, WRITING, "no n tokens in a row come twice"),
    ("encoder_no_repeat_ngram", int, WRITING, "no n tokens in a row of the prompt or source come again"),
    ("min_new_tokens", int, WRITING, "tokens before a text may end"),
    ("length_penalty_start", int, WRITING, "with the factor: tokens after which ending gets likelier"),
    ("length_penalty_factor", float, WRITING, "how fast it does; above 1"),
    ("bad_words", list, WRITING, "text that must not appear, several allowed"),
    ("forced_prefix", str, WRITING, "text that the continuation begins with"),
    ("num_beams", int, ("beam",), "beams kept (default 4)"),
    (
        "length_penalty",
        float,
        ("beam",),
        "exponent of the length by which scores are divided; above 0 favours long texts",
    ),
    ("length_norm", str, ("beam",), "hf: by length^a (default); gnmt: by ((5 + length) / 6)^a"),
    ("num_beam_groups", int, ("beam",), "groups of beams that are kept apart"),
    ("diversity_penalty", float, ("beam",), "between groups: taken off tokens that another has just chosen"),
    ("coverage_penalty", float, ("beam",), "encoder-decoders: takes from texts that leave parts of the source unread"),
    ("early_stopping", str, ("beam",), "true, false (default) or never: when a search ends"),
    ("penalty_alpha", float, ("contrastive",), "weight of unlikeness (default 0.6)"),
    ("draft_tokens", int, ("speculative",), "tokens proposed at a time (default 4)"),
    ("order", str, ("fill",), "once (default), left_to_right or confident"),
    ("iterations", int, ("gibbs", "mask_predict"), "rounds (default 500; mask_predict 10)"),
    ("burn_in", int, ("gibbs",), "rounds that draw from all tokens (default 250)"),
    ("walk", str, ("gibbs",), "random (default), left_to_right or parallel"),
    ("num_lengths", int, ("mask_predict",), "lengths tried (default 5)"),
)
DEFINE = {float: flags.DEFINE_float, str: flags.DEFINE_string, list: flags.DEFINE_multi_string}
# Whole numbers: those for which 0 means off, and the largest; what fits in memory is known once the model is open.
ZERO = {"top_k", "no_repeat_ngram", "encoder_no_repeat_ngram", "min_new_tokens", "length_penalty_start", "burn_in"}
LARGEST = {"draft_tokens": 1000, "num_beams": 10_000, "num_beam_groups": 10_000, "num_lengths": 10_000}


def define(name: str, kind: type, text: str) -> flags.FlagHolder:
    """Define an option that is None unless given."""
    if kind is int:
        return flags.DEFINE_integer(
            name, None, text, lower_bound=0 if name in ZERO else 1, upper_bound=LARGEST.get(name, 1_000_000)
        )
    return DEFINE[kind](name, None, text)


GIVEN = {name: define(name, kind, f"{', '.join(of)}: {text}") for name, kind, of, text in OPTIONS}
BELONGS = {name: of for name, _, of, _ in OPTIONS} | {
    "regex": STEPWISE,
    "json_schema": STEPWISE,
    "draft": ("speculative",),
    "stop": (*STEPWISE, "contrastive", "speculative"),
    "show_probabilities": (*STEPWISE, "contrastive", "speculative"),
    "max_new_tokens": (*WRITING, "gibbs"),
    "chat": WRITING,
    "system": WRITING,
}


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, load the run, write and show the samples."""
    check(not overrides, "lm.generate takes no --config.* flags: a run's config is its own")
    agree()
    file = output("lm.generate", [PROMPTS.value])
    options = {name: flag.value for name, flag in GIVEN.items() if flag.value not in (None, [])}
    from lm import platform  # jax starts here: a mistake in the flags is told before

    platform.prepare()
    from lm.convert.runs import opened
    from lm.decode.request import Command

    command = Command(STRATEGY.value, options, flags.FLAGS.flag_values_dict())
    job = command.job(*opened(WORKDIR.value, MODEL.value, STEP.value, NEW_HEADS.value))
    if PROMPTS.value:
        from lm.decode.files import complete
        from lm.decode.show import FileProgress

        count = complete(job, Path(PROMPTS.value), file.path, command.settings(), FileProgress, flags.FLAGS.overwrite)
        file.remember()
        print(f"{file}: the samples of {count:,} prompts")
        return
    samples = command.say(job, PROMPT.value)
    if file:
        from lm.decode.modes import as_object

        lines = (dump_json(as_object(sample)) + "\n" for sample in samples)
        file.write("".join(lines))


def agree() -> None:
    """Raise UserError where flags contradict each other."""
    strategy, given = STRATEGY.value, flags.FLAGS
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    for name, of in BELONGS.items():
        if given[name].present and given[name].value not in (None, [], False) and strategy not in of:
            raise UserError(f"--{name} belongs to --strategy={' or '.join(of)}, not to {strategy}")
    check(not (REGEX.value and SCHEMA.value), "--regex and --json_schema exclude each other: give one")
    check(strategy != "speculative" or DRAFT.value, "--strategy=speculative needs --draft=RUN|HF_DIR, a smaller model")
    check(SYSTEM.value is None or CHAT.value, "--system is for --chat")
    if PROMPTS.value:
        check(not given["prompt"].present, "--prompt and --prompts exclude each other: give one")
        check(Path(PROMPTS.value).is_file(), f"--prompts={PROMPTS.value}: there is no such file")
        check(OUTPUT.value is not None, "--prompts needs --output=FILE.jsonl for the samples")
        check(not SHOW.value, "--show_probabilities is for --prompt, not for a file of prompts")


if __name__ == "__main__":
    run(main)
