"""Continue text with a trained run or a published model.

    python -m lm.generate --workdir=RUN|--model=HF_DIR --prompt='Once upon a time' [--strategy=greedy|sample] [--output=F.jsonl]
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from lm.command import run
from lm.errors import check, unknown

STRATEGIES = ("greedy", "sample")

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
STEP = flags.DEFINE_string("step", "latest", "checkpoint: 'latest', 'best' (by the held-out loss) or a step's number")
PROMPT = flags.DEFINE_multi_string("prompt", [""], "text to continue, several allowed; empty begins a document")
STRATEGY = flags.DEFINE_string("strategy", "sample", f"one of {', '.join(STRATEGIES)}")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "divides the scores: below 1 safer, above 1 wilder")
TOP_K = flags.DEFINE_integer("top_k", 0, "draw from the k likeliest tokens (0: from all)")
TOP_P = flags.DEFINE_float("top_p", 1.0, "draw from the likeliest tokens that together have this probability")
SAMPLES = flags.DEFINE_integer("num_samples", 1, "continuations of each prompt")
NEW = flags.DEFINE_integer("max_new_tokens", None, "longest continuation (default: 256, or what the context leaves)")
STOP = flags.DEFINE_multi_string("stop", [], "text that ends a continuation and is cut off, several allowed")
SEED = flags.DEFINE_integer("seed", 0, "seed of the draws")
OUTPUT = flags.DEFINE_string("output", None, "write the samples to this file, one JSON object a line")


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, load the run, print the samples."""
    check(not overrides, "lm.generate takes no --config.* flags: a run's config is its own")
    if STRATEGY.value not in STRATEGIES:
        raise unknown("strategy", STRATEGY.value, STRATEGIES)
    output = Path(OUTPUT.value) if OUTPUT.value else None
    if output:
        check(output.parent.is_dir(), f"--output={output}: there is no folder '{output.parent}'; make it first")
        check(not output.is_dir(), f"--output={output} is a folder; name a file")
    from lm import platform  # jax starts here: a mistake in the flags is told before

    platform.prepare()
    from lm.convert.run import opened
    from lm.decode.generate import encode, generate
    from lm.decode.sampling import Sampling

    Sampling(strategy=STRATEGY.value, temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value)
    config, params, tokenizer = opened(WORKDIR.value, MODEL.value, STEP.value)
    check(
        config.objective.generative,
        f"{WORKDIR.value or MODEL.value} is a model of {type(config.objective).__name__}, which does not continue text from "
        "left to right",
    )
    model = config.objective.model
    longest = max(len(encode(tokenizer, prompt)) for prompt in PROMPT.value)
    samples = generate(
        model,
        params,
        tokenizer,
        PROMPT.value,
        max_new_tokens=max(1, min(256, model.context - longest)) if NEW.value is None else NEW.value,
        strategy=STRATEGY.value,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        num_samples=SAMPLES.value,
        seed=SEED.value,
        stop=STOP.value,
    )
    show(samples)
    if output:
        lines = (json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
        output.write_text("".join(lines), encoding="utf-8")


def show(samples: list[Any]) -> None:
    """Print each prompt, dimmed on a terminal, with its continuation; a line above each when there are several."""
    from lm.console import printable

    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for i, sample in enumerate(samples):
        if len(samples) > 1:
            print(f"{dim}--- {i + 1} of {len(samples)}, log-probability {sample.logprob:.2f}{plain}")
        print(f"{dim}{printable(sample.prompt)}{plain}{printable(sample.text)}", flush=True)


if __name__ == "__main__":
    run(main)
