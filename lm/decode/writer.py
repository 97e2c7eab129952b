"""A network that writes: what is asked of it, and the loop that continues a batch of prompts."""

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
from lm.decode.loop import begin, go_on
from lm.decode.prefill import batch_prompts, bucket, encode_prompts, opened_steps
from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.steps import Steps

FREE = Rules()  # nothing forbidden
PATIENCE = 0.25  # seconds between two looks at what was written, at the text for stop strings, at the keyboard
Row = tuple[np.ndarray, np.ndarray]  # new ids, and their log-probabilities under the model itself, or the sum alone
Watch = Callable[[list[Row]], None]  # told of all rows so far, each time there is more


class Writer:
    """A network that writes: its objective, steps, the ids that end a text, and parameters laid out for decoding."""

    def __init__(self, objective: Any, params: Any, tokenizer: Tokenizer):
        self.objective, self.params = objective.writer(params)
        self.tokenizer = tokenizer
        self.steps: Steps = opened_steps(self.objective)
        self.stops: tuple[int, ...] = tuple(self.objective.stops(tokenizer))
        self._laid: tuple[bool, Any] | None = None
        self.accepted: float | None = None  # share of a draft's tokens that the last speculative batch kept

    def prepared(self, rows: int) -> Any:
        """Lay the parameters out for that many rows; a single one has a layout of its own."""
        if self._laid is None or self._laid[0] != (rows == 1):
            self._laid = None  # the old layout goes before the new one comes
            self._laid = rows == 1, self.steps.prepare(self.params, rows)
        return self._laid[1]

    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        return encode_prompts(self.objective, self.tokenizer, texts)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, whatever the prompts: how many tokens, how they are chosen, what they must follow."""

    new: int
    rules: Rules = FREE
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None


def continue_tokens(
    steps: Steps,
    prepared: Any,
    prompts: Sequence[Prompt],
    keys_B: jax.Array,
    *,
    sampling: Sampling,
    new: int,
    rules: Rules = FREE,
    stops: tuple[int, ...] = (),
    grammar: Grammar | None = None,
    finished: Callable[[np.ndarray], bool] | None = None,
    watch: Watch | None = None,
) -> list[Row]:
    """Continue prompts by up to `new` tokens; give each row's (new ids, their log-probabilities).

    `finished`: tells of new ids on the host whether their text holds a stop string. It is asked between stretches of
    the loop, so a row may run some tokens on: whoever asked cuts them off. Stretches take about `PATIENCE` seconds.
    """
    rules = replace(rules, stops=stops)
    how = {"steps": steps, "sampling": sampling, "rules": rules, "stops": stops}
    repeats = len(keys_B) // len(prompts)
    rows = batch_prompts(prompts)
    progress = begin(prepared, rows, keys_B, new, grammar, room=bucket(new), repeats=repeats, **how)
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
        jax.block_until_ready(progress.done_B)
        seconds = time.monotonic() - began
        stretch = 2 * stretch if seconds < PATIENCE / 2 else max(1, stretch // 2) if seconds > 2 * PATIENCE else stretch


def fetch(progress: Any) -> list[Row]:
    """Bring what was written to the host."""
    ids_BT, logprobs_BT, length_B = jax.device_get((progress.new(), progress.logprobs_BT, progress.length_B))
    return [(ids[:n], logprobs[:n]) for ids, logprobs, n in zip(ids_BT, logprobs_BT, length_B)]
