"""Decoding speed of a model with random weights, so that any config can be measured."""

import time
from typing import Any

import jax
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.decode.generate import row_keys
from lm.decode.sampling import Sampling
from lm.decode.steps import StackSteps
from lm.decode.writer import continue_tokens
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.sharding import unbox

GREEDY = Sampling(strategy="greedy")


def random_params(config: Transformer, seed: int = 0) -> dict[str, Any]:
    """Initialise the parameters of a model."""
    tokens_BT = np.zeros((1, 8), np.int32)
    return jax.jit(lambda key: unbox(Model(config).init(key, tokens_BT)["params"]))(jax.random.key(seed))


def tokens_per_second(
    config: Transformer, rows: int, *, new: int = 64, prompt: int = 16, sampling: Sampling = GREEDY, repeats: int = 3,
    params: Any = None, seed: int = 0,
) -> float:  # fmt: skip
    """Decode `new` tokens in each of `rows` rows after prompts of `prompt` tokens; return the median rate over all rows.

    The prefill counts, compilation and the layout of the parameters do not.
    """
    steps = StackSteps(config)
    prepared = steps.prepare(random_params(config, seed) if params is None else params, rows)
    encoded = [Prompt(ids) for ids in np.random.default_rng(seed).integers(0, config.vocab, (rows, prompt), np.int32)]
    keys_B = row_keys(seed, encoded, [0] * rows, 1)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        continue_tokens(steps, prepared, encoded, keys_B, sampling=sampling, new=new)
        times.append(time.perf_counter() - began)
    # The first run compiles; the median keeps a busy moment of the machine out.
    return rows * new / float(np.median(times[1:]))
