"""Measure a trained run or a published model.

    python -m lm.evaluate --workdir=RUN|--model=HF_DIR [--text='Some text' ...] [--output=F.json]

Without `--text`: the run's own validation split, whole. With it: each token's probability given those before it.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from absl import flags

from lm.command import run
from lm.errors import check

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
MODEL = flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
STEP = flags.DEFINE_string("step", "latest", "checkpoint: 'latest', 'best' (by the held-out loss) or a step's number")
TEXT = flags.DEFINE_multi_string("text", [], "text whose tokens are scored, several allowed")
OUTPUT = flags.DEFINE_string("output", None, "write the figures to this file as JSON")


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, load the run, print a table."""
    check(not overrides, "lm.evaluate takes no --config.* flags: a run's config is its own")
    from lm import platform

    platform.prepare()
    from lm.convert.run import opened

    config, params, tokenizer = opened(WORKDIR.value, MODEL.value, STEP.value)
    check(
        config.objective.generative or not TEXT.value,
        f"--text: {WORKDIR.value or MODEL.value} is a model of {type(config.objective).__name__}, which gives no token a "
        "probability from left to right; without --text its held-out figures are measured",
    )
    results = {"text": texts(config, params, tokenizer)} if TEXT.value else {"validation": validation(config, params)}
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def texts(config: Any, params: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """Score and show each text of the command line."""
    from lm.console import printable, table
    from lm.tasks.language import score

    results = [score(config, params, tokenizer, text) for text in TEXT.value]
    for found in results:
        pairs = zip(found["tokens"], found["logprobs"])
        rows = [(printable(t).replace("\n", "\\n"), *(("", "") if p is None else (math.exp(p), p))) for t, p in pairs]
        print(table(rows, ("token", "probability", "log")))
        if found["perplexity"]:
            print(f"sum {found['sum']:.3f} nats, perplexity {found['perplexity']:.3f}\n")
    return results


def validation(config: Any, params: Any) -> dict[str, float]:
    """Measure the run's validation split on the first device of this machine."""
    import jax

    from lm.console import table
    from lm.data.prepare import prepare
    from lm.objectives.base import resolve
    from lm.sharding import AXES, make_mesh
    from lm.tasks.language import HeldOut

    config, corpus = resolve(config, prepare(config.data, report=print))
    check(len(corpus.validation) > 1, "this run held no text out: its config has validation=0")
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        found = HeldOut(dataclasses.replace(config, evaluate_batches=0), corpus, mesh)(params)
    found = {name.rpartition("/")[2]: value for name, value in found.items()}
    print(table(list(found.items()), ("validation", "value")))
    return found


if __name__ == "__main__":
    run(main)
