"""Decoding speed of a model with random weights, so that any config can be measured."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.decode.generate import row_keys
from lm.decode.prefill import batch_prompts
from lm.decode.sampling import Sampling
from lm.decode.search.beam import Beams, beam_search
from lm.decode.steps import StackSteps
from lm.decode.writer import FREE, continue_tokens
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.sharding import unbox

GREEDY = Sampling(strategy="greedy")


def random_params(config: Transformer, seed: int = 0) -> dict[str, Any]:
    """Initialise the parameters of a model."""
    tokens_BT = np.zeros((1, 8), np.int32)
    return jax.jit(lambda key: unbox(Model(config).init(key, tokens_BT)["params"]))(jax.random.key(seed))


def decoder(
    config: Transformer, params: Mapping[str, Any], rows: int, *, new: int, prompt: int = 16, sampling: Sampling = GREEDY,
    beams: Beams | None = None, seed: int = 0,
) -> Callable[[], Any]:  # fmt: skip
    """Return a function that decodes `new` tokens in each of `rows` rows after random prompts; `beams`: by search."""
    steps = StackSteps(config)
    prepared = steps.prepare(params, rows * (beams.count if beams else 1))
    encoded = [Prompt(ids) for ids in np.random.default_rng(seed).integers(0, config.vocab, (rows, prompt), np.int32)]
    if beams is not None:
        return lambda: beam_search(steps, prepared, batch_prompts(encoded), beams=beams, rules=FREE, new=new, stops=())
    keys_B = row_keys(seed, encoded, [0] * rows, 1)
    return lambda: continue_tokens(steps, prepared, encoded, keys_B, sampling=sampling, new=new)


def tokens_per_second(
    config: Transformer, rows: int, *, new: int = 64, prompt: int = 16, sampling: Sampling = GREEDY, repeats: int = 3,
    params: Any = None, seed: int = 0,
) -> float:  # fmt: skip
    """Decode as `decoder` does; return the median rate over all rows.

    The prefill counts, compilation and the layout of the parameters do not.
    """
    params = random_params(config, seed) if params is None else params
    decode = decoder(config, params, rows, new=new, prompt=prompt, sampling=sampling, seed=seed)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        decode()
        times.append(time.perf_counter() - began)
    # The first run compiles; the median keeps a busy moment of the machine out.
    return rows * new / float(np.median(times[1:]))
