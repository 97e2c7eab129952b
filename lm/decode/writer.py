"""A network that writes, a request to it, and the host's side of the token loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.grammar.constrained import Grammar
from lm.decode.loop import Progress, begin, go_on
from lm.decode.prefill import batch_prompts, bucket, encode_prompts, opened_steps
from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.steps import Prepared, Steps
from lm.objectives.base import Objective

FREE = Rules()  # nothing forbidden
PATIENCE = 0.25  # seconds between two checks of the text for stop strings, and of the keyboard
Row = tuple[np.ndarray, np.ndarray]  # new ids, and their log-probabilities under the model itself, or the sum alone
Watch = Callable[[list[Row]], None]  # called with all rows so far, each time they grow


class Writer:
    """An objective that writes, its decoding steps, stop ids, and parameters laid out for decoding."""

    def __init__(self, objective: Objective, params: Any, tokenizer: Tokenizer):
        self.objective, self.params = objective.writer(params)
        self.tokenizer = tokenizer
        self.steps: Steps = opened_steps(self.objective)
        self.stops: tuple[int, ...] = tuple(self.objective.stops(tokenizer))
        self._laid: tuple[bool, Prepared] | None = None
        self.accepted: float | None = None  # share of a draft's tokens that the last speculative batch kept

    def prepared(self, rows: int) -> Prepared:
        """Lay the parameters out for that many rows; a single one has a layout of its own."""
        if self._laid is None or self._laid[0] != (rows == 1):
            self._laid = None  # free the old layout before the new one is made: together they may not fit
            self._laid = rows == 1, self.steps.prepare(self.params, rows)
        return self._laid[1]

    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        return encode_prompts(self.objective, self.tokenizer, texts)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Properties of the text that any strategy respects; `new`: bound on new tokens, `samples`: of each prompt."""

    new: int
    rules: Rules = FREE
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None


def continue_tokens(
    steps: Steps, prepared: Prepared, prompts: Sequence[Prompt], keys_B: jax.Array, *, sampling: Sampling, new: int,
    rules: Rules = FREE, stops: tuple[int, ...] = (), grammar: Grammar | None = None,
    finished: Callable[[np.ndarray], bool] | None = None, watch: Watch | None = None,
) -> list[Row]:  # fmt: skip
    """Continue prompts by up to `new` tokens; return each row's (new ids, their log-probabilities).

    `finished` checks on the host whether the text of new ids holds a stop string. It runs between stretches of the loop
    of about `PATIENCE` seconds, so a row may have some tokens too many: the caller cuts them off.
    """
    rules = replace(rules, stops=stops)
    how = {"steps": steps, "sampling": sampling, "rules": rules, "stops": stops}
    repeats = len(keys_B) // len(prompts)
    rows = batch_prompts(prompts)
    progress = begin(prepared, rows, keys_B, new, grammar, room=bucket(new), repeats=repeats, **how)
    # Stretches start short where somebody reads along, and double until one takes long enough.
    count, stretch = 1, 1 if watch or finished else 16
    while True:
        if watch:
            watch(fetch(progress))
        done_B = np.asarray(progress.done_B)
        if finished and count < new and not done_B.all():
            ids_BT, length_B = jax.device_get((progress.new(), progress.length_B))
            done_B = np.array([d or finished(ids[:n]) for ids, n, d in zip(ids_BT, length_B, done_B)])
            progress = progress.replace(done_B=jnp.asarray(done_B))
        if count >= new or done_B.all():
            return fetch(progress)
        count, began = min(count + stretch, new), time.monotonic()
        progress = go_on(prepared, progress, keys_B, count, new, grammar, **how)
        jax.block_until_ready(progress.done_B)  # the host reacts to Ctrl-C only between stretches
        seconds = time.monotonic() - began
        stretch = 2 * stretch if seconds < PATIENCE / 2 else max(1, stretch // 2) if seconds > 2 * PATIENCE else stretch


def fetch(progress: Progress) -> list[Row]:
    """Copy the new tokens to the host."""
    ids_BT, logprobs_BT, length_B = jax.device_get((progress.new(), progress.logprobs_BT, progress.length_B))
    return [(ids[:n], logprobs[:n]) for ids, logprobs, n in zip(ids_BT, logprobs_BT, length_B)]
