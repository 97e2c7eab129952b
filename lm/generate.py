"""Continue text, answer, or fill masks, with a trained run or a published model.

    python -m lm.generate --workdir=RUN|--model=HF_DIR --prompt='Once upon a time' [--strategy=NAME] [--output=F.jsonl]
    python -m lm.generate --model=HF_DIR --prompts=FILE.txt|FILE.jsonl --output=F.jsonl     thousands of prompts, resumable

Strategies: greedy and sample (the default) take one token after another; beam searches; contrastive avoids repetition;
speculative lets a small model (--draft) propose; fill, gibbs (masked models) and mask_predict (conditional ones) fill in.
Greedy search and sampling go on beyond the context from its last half. Names of transformers are understood:
--num_return_sequences, --no_repeat_ngram_size, --stop_strings, --do_sample=false and others.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from lm import platform
from lm.decode.options import Constraints, Flag, collect_flags, options_of, translated
from lm.decode.strategies import STRATEGIES
from lm.errors import UserError, check, unknown
from lm.flags import define_mesh, define_new_heads, define_output, import_own, output, run
from lm.strict_json import dump_json

import_own()  # strategies of a user's own have flags, too


def strategies_with(name: str) -> tuple[str, ...]:
    """List the strategies that heed a flag."""
    return tuple(of for of, kind in STRATEGIES.items() if name in kind.takes or name in options_of(kind))


WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
STEP = flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best or a step")
NEW_HEADS = define_new_heads()
MESH = define_mesh()
PROMPT = flags.DEFINE_multi_string("prompt", [""], "text to continue, several allowed; empty starts a document")
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
CHAT = flags.DEFINE_bool(
    "chat", False, "the prompt is what a user says, laid out by the model's chat template; without one, talk line by line"
)
SYSTEM = flags.DEFINE_string("system", None, "with --chat: what the system message says")
REGEX = flags.DEFINE_string("regex", None, "regular expression that the whole new text follows")
SCHEMA = flags.DEFINE_string("json_schema", None, "JSON schema, or its file, that the new text is an instance of")
SAMPLES = flags.DEFINE_integer(
    "num_samples", None, f"{', '.join(strategies_with('num_samples'))}: texts for each prompt (beam: the best ones)",
    lower_bound=1, upper_bound=1_000_000,
)  # fmt: skip
DEFINE: dict[Any, Callable[..., flags.FlagHolder]] = {
    float: flags.DEFINE_float, tuple[str, ...]: flags.DEFINE_multi_string,
}  # fmt: skip


def define(name: str, flag: Flag) -> flags.FlagHolder:
    """Define an option of some strategies; None unless given."""
    if flag.kind is int:
        return flags.DEFINE_integer(name, None, flag.text, lower_bound=flag.low, upper_bound=flag.high)
    return DEFINE.get(flag.kind, flags.DEFINE_string)(name, None, flag.text)


OPTIONS = collect_flags(STRATEGIES, {Constraints: strategies_with("repetition_penalty")})
GIVEN = {name: define(name, flag) for name, flag in OPTIONS.items()} | {"num_samples": SAMPLES}
# Flags that only some strategies heed.
PARTIAL = {*GIVEN, *(name for kind in STRATEGIES.values() for name in kind.takes)}


def groups() -> dict[str, dict[str, str]]:
    """Group the flags for --help; an option stands under the strategies for which it means the same."""
    found: dict[str, dict[str, str]] = {
        "Model": dict.fromkeys(("workdir", "model", "step", "mesh", "allow_new_heads", "modules"), ""),
        "Prompts and samples": dict.fromkeys(
            ("prompt", "prompts", "special", "max_new_tokens", "num_samples", "stop", "seed", "output", "overwrite",
             "show_probabilities"), "",
        ),
        "Conversations": {"chat": "", "system": ""},
        "Strategy": {"strategy": ""},
    }  # fmt: skip
    for name in ("regex", "json_schema"):
        found["Strategy"][name] = f"{', '.join(strategies_with(name))}: {flags.FLAGS[name].help}"
    for name, flag in OPTIONS.items():
        for text, strategies in flag.groups.items():
            found.setdefault(f"Options of {', '.join(strategies)}", {})[name] = text
    return found


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, load the run, write and show the samples."""
    check(not overrides, "lm.generate takes no --config.* flags: a run's config is its own")
    agree()
    file = output("lm.generate", [PROMPTS.value])
    options = {name: flag.value for name, flag in GIVEN.items() if flag.value not in (None, [])}
    strategy, constraints = (built(kind, options) for kind in (STRATEGIES[STRATEGY.value], Constraints))

    platform.prepare()  # jax starts here: mistakes in the flags are reported before
    from lm.convert.runs import opened
    from lm.decode.modes import LeftToRight
    from lm.decode.request import Command

    command = Command(strategy, constraints, options, flags.FLAGS.flag_values_dict())
    job = command.job(*opened(WORKDIR.value, MODEL.value, STEP.value, NEW_HEADS.value, MESH.value))
    if PROMPTS.value:
        from lm.decode.files import complete
        from lm.decode.show import FileProgress

        count = complete(job, Path(PROMPTS.value), file.path, command.settings(), FileProgress, flags.FLAGS.overwrite)
        file.remember()
        print(f"{file}: the samples of {count:,} prompts")
        return
    if CHAT.value and not flags.FLAGS["prompt"].present and isinstance(job, LeftToRight):
        samples = command.converse(job)
    else:
        samples = command.print_samples(job, PROMPT.value)
    if file:
        from lm.decode.results import as_object

        lines = (dump_json(as_object(sample)) + "\n" for sample in samples)
        file.write("".join(lines))


def built(kind: type, options: dict[str, Any]) -> Any:
    """Build a strategy, or the constraints, from the options given."""
    return kind(**{name: OPTIONS[name].value(options[name]) for name in options_of(kind) if name in options})


def agree() -> None:
    """Raise UserError where flags contradict each other."""
    strategy, given = STRATEGY.value, flags.FLAGS
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    for name in sorted(PARTIAL):
        if given[name].present and given[name].value not in (None, [], False) and strategy not in strategies_with(name):
            *others, last = strategies_with(name)
            known = f"{', '.join(others)} or {last}" if others else last
            raise UserError(f"--{name} belongs to --strategy={known}, not to {strategy}")
    check(not (REGEX.value and SCHEMA.value), "--regex and --json_schema exclude each other: give one")
    check(SYSTEM.value is None or CHAT.value, "--system is for --chat")
    if PROMPTS.value:
        check(not given["prompt"].present, "--prompt and --prompts exclude each other: give one")
        check(Path(PROMPTS.value).is_file(), f"--prompts={PROMPTS.value}: there is no such file")
        check(OUTPUT.value is not None, "--prompts needs --output=FILE.jsonl for the samples")
        check(not SHOW.value, "--show_probabilities is for --prompt, not for a file of prompts")


if __name__ == "__main__":
    sys.argv = translated(sys.argv)
    run(main, groups=groups())
