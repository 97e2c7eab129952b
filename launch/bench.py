"""Measure this machine, then the program against it.

    python -m launch.bench [--config=configs/gpt_tiny.py] [--parts=machine,step,decode,batches] [--output=F.json]
    python -m launch.bench --parts=objectives       # rates of corruption, every objective's first config
    python -m launch.bench --peers[=gpt,bert,electra,xlnet,t5,bart]    # steps and decoding beside transformers on torch
    python -m launch.bench --scaling=scaling.png [--config=configs/gpt_tiny.py]    # cost over width, depth, context, vocabulary

First what the machine can do (one large matrix product, memory bandwidth), then step time, decoding and batch rates as
shares of that. Medians of several repeats; on a shared machine compare only figures of one run.
"""

import resource
import time
from pathlib import Path
from typing import Any

from absl import flags

from lm import platform
from lm.config import Config, load, override
from lm.console import table
from lm.errors import unknown
from lm.flags import define_output, output, run
from lm.outputs import Output
from lm.strict_json import dump_json

CONFIG = flags.DEFINE_string("config", "configs/gpt_tiny.py", "config file and its arguments")
PARTS = flags.DEFINE_list("parts", ["machine", "step", "decode", "batches"], "what to measure; 'score', 'objectives' too")
STEPS = flags.DEFINE_integer("steps", 10, "train steps to time", lower_bound=1, upper_bound=1_000_000)
TOKENS = flags.DEFINE_integer("tokens", 64, "tokens to decode a row", lower_bound=1)
OUTPUT = define_output("write the figures to this file as JSON")
PEERS = flags.DEFINE_list("peers", None, "compare with transformers on torch: all, or some of gpt,bert,electra,xlnet,t5,bart")
flags.FLAGS["peers"].boolean = True  # absl's word for a flag that may stand without a value, which then is "true"
SCALING = flags.DEFINE_string(
    "scaling", None, "time steps over width, depth, context and vocabulary; draw them into this PNG file"
)
SEED = flags.DEFINE_integer("seed", 0, "seed of the random weights")


def machine() -> dict[str, float]:
    """Rate of one large matrix product (FLOP/s) and of reading and writing memory (bytes/s)."""
    import jax
    import jax.numpy as jnp

    from lm.timing import seconds

    size = 2048 if jax.default_backend() == "cpu" else 8192
    found = {}
    for dtype in ("float32", "bfloat16"):
        x = jnp.ones((size, size), dtype)
        product = jax.jit(lambda a: a @ a)
        found[f"matmul_{dtype}_flops"] = 2 * size**3 / seconds(lambda f=product, x=x: f(x).block_until_ready(), 7)
    x = jnp.ones(1 << 28 if jax.default_backend() != "cpu" else 1 << 26, jnp.float32)
    total = jax.jit(lambda a: a.sum())
    found["memory_bytes_per_second"] = x.nbytes / seconds(lambda: total(x).block_until_ready(), 7)
    return found


def batches(config: Config, corpus: Any) -> dict[str, float]:
    """Tokens a second that the data path makes, in one thread, off the device."""
    from lm.objectives.base import training_batches

    made = training_batches(config, corpus)
    rows, start, count = 0, time.perf_counter(), 0
    while time.perf_counter() - start < 3:
        made[count]
        count += 1
        rows += config.batch
    return {"batch_tokens_per_second": rows * config.objective.records.tokens / (time.perf_counter() - start)}


def corruptions() -> dict[str, float]:
    """Tokens a second that each objective's first config corrupts and packs, in one thread."""
    from lm.data.corpus.prepare import prepare
    from lm.objectives.base import resolve
    from lm.objectives.catalogue import default, objectives

    found = {}
    for objective in objectives():
        config = load(default(objective))
        rate = batches(*resolve(config, prepare(config.data)))["batch_tokens_per_second"]
        found[f"{objective.__name__.lower()}_tokens_per_second"] = rate
    return found


def decode(config: Config, rate: float) -> dict[str, float]:
    """Greedy decoding of 1 and 8 rows with random weights, and its share of what memory allows.

    Every token of a batch reads all weights once, so bandwidth / (4 bytes x parameters) bounds the steps a second, but
    for models that the processor's cache holds: those can pass 1.
    """
    from lm.decode.speed import random_params, tokens_per_second
    from lm.models import flops

    model = config.objective.model
    params = random_params(model, SEED.value)
    bound = rate / (4 * flops.parameter_count(params))
    found = {}
    for rows in (1, 8):
        speed = tokens_per_second(model, rows, new=TOKENS.value, params=params)
        found[f"decode_{rows}_tokens_per_second"] = speed
        found[f"decode_{rows}_share_of_bandwidth"] = speed / rows / bound
    return found


def score(config: Config) -> dict[str, float]:
    """Tokens a second that perplexity by windows scores, and that the forward pass of training makes of the same rows."""
    import jax
    import numpy as np

    from lm.data.rows.prompts import Prompt
    from lm.decode.score import TOKENS as TOGETHER
    from lm.decode.score import Pair, Scorer
    from lm.decode.speed import random_params
    from lm.timing import seconds

    objective, model = config.objective, config.objective.model
    params, rows = random_params(model, SEED.value), max(1, TOGETHER // model.context)
    ids = np.random.default_rng(SEED.value).integers(0, model.vocab, (rows, model.context + 1), np.int32)
    scorer, pairs = Scorer(objective, params), [Pair(Prompt(row[:1]), row[1:]) for row in ids]
    ones = np.ones((rows, model.context), np.int32)
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": ones.astype(np.float32), "segments": ones}
    batch["positions"] = np.broadcast_to(np.arange(model.context), ones.shape)
    forward = jax.jit(lambda params, batch: objective.loss(params, batch, None, None)[0])
    times = [seconds(lambda: scorer(pairs), 3), seconds(lambda: jax.block_until_ready(forward(params, batch)), 3)]
    scored, trained = (ones.size / time for time in times)
    return {"score_tokens_per_second": scored, "forward_tokens_per_second": trained, "score_share_of_forward": scored / trained}


def peers(target: Output | None) -> None:
    """Print steps and decoding beside transformers on torch."""
    from launch.peers import HEADER, compare, known

    names, rows = known([name for name in PEERS.value if name != "true"]), []
    rate = machine()["matmul_float32_flops"]
    for line in compare(names, STEPS.value, rate, TOKENS.value):
        rows.append(line)
        print("  ".join(line), flush=True)
    print(table(rows, HEADER))
    if target:
        target.write(dump_json([dict(zip(("what", *HEADER[1:]), line, strict=True)) for line in rows], indent=1) + "\n")


def scaling(config: Config, corpus: Any, target: Output | None) -> None:
    """Print and draw the time of a step over the sizes of the network."""
    from launch.scaling import HEADER, cells, draw, points

    rate = machine()["matmul_float32_flops"]
    found: list[Any] = []
    for point in points(config, corpus, STEPS.value, rate):
        found.append(point)
        print("  ".join(cells(point)), flush=True)
    print(table([cells(point) for point in found], HEADER))
    draw(found, f"{CONFIG.value}: a step, one size changed at a time", rate, Path(SCALING.value))
    print(SCALING.value)
    if target:
        target.write(dump_json(found, indent=1) + "\n")


def main(overrides: list[tuple[str, str]]) -> None:
    config = load(CONFIG.value)
    config = override(config, overrides)
    known = ("machine", "step", "decode", "score", "batches", "objectives")
    for part in PARTS.value:
        if part not in known:
            raise unknown("part", part, known)
    target = output("launch.bench")  # checked before minutes of measurement

    platform.prepare()
    if PEERS.value is not None:
        peers(target)
        return
    from lm.data.corpus.prepare import prepare
    from lm.objectives.base import resolve

    config, corpus = resolve(config, prepare(config.data, report=print))
    if SCALING.value is not None:
        scaling(config, corpus, target)
        return
    found: dict[str, float] = machine() if {"machine", "step", "decode"} & set(PARTS.value) else {}
    if "objectives" in PARTS.value:
        found |= corruptions()
    if "step" in PARTS.value:
        from lm.timing import step

        timed = step(config, corpus, STEPS.value)
        share = timed["step_flops"] / timed["step_seconds"] / found["matmul_float32_flops"]
        found |= {**timed, "share_of_matmul": share}
    if "decode" in PARTS.value and config.objective.writes == "text":
        found |= decode(config, found["memory_bytes_per_second"])
    if "score" in PARTS.value and config.objective.writes == "text":
        found |= score(config)
    if "batches" in PARTS.value:
        found |= batches(config, corpus)
    found["peak_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(table(list(found.items()), ("measure", "value")))
    if target:
        target.write(dump_json(found, indent=1) + "\n")


if __name__ == "__main__":
    run(main, Config)
