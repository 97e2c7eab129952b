"""The token loop: a compiled prefill of the prompts, then one compiled while-loop for all new tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lm.decode.grammar.constrained import Grammar
from lm.decode.processors import History, Rules
from lm.decode.sampling import Sampling, log_probability
from lm.decode.steps import Prepared, Prompts, Steps


class Progress(struct.PyTreeNode):
    """State of the loop: `history.count` tokens chosen so far, of which row i has the first `length_B[i]`, a stop included.

    `logprobs_BT`: each new token's natural log-probability under the model itself; `grammar_B`: each row's state in the
    grammar's automaton.
    """

    state: Any
    history: History
    logprobs_BT: jax.Array
    length_B: jax.Array
    done_B: jax.Array
    grammar_B: jax.Array | None = None

    def new(self) -> jax.Array:
        """Return the new tokens, (B, capacity)."""
        return self.history.tokens_BT[:, self.history.prompt :]


def read_prompts(steps: Steps, prepared: Prepared, prompts: Prompts, room: int) -> tuple[jax.Array, jax.Array, Any, History]:
    """Read the prompts once; return hidden states (B, T, D), the next token's logits (B, V), the state and the history."""
    h_BTD, state = steps.prefill(prepared, prompts, room)
    sources = prompts.source_BS, prompts.source_segments_BS
    history = History.begin(prompts.tokens_BT, prompts.segments_BT, room, *sources)
    return h_BTD, steps.logits(prepared, h_BTD[:, -1]), state, history


@partial(jax.jit, static_argnames=("steps", "sampling", "rules", "stops", "room", "repeats"))
def begin(
    prepared: Prepared, prompts: Prompts, keys_B: jax.Array, until: int, grammar: Grammar | None = None, *, steps: Steps,
    sampling: Sampling, rules: Rules, stops: tuple[int, ...], room: int, repeats: int = 1,
) -> Progress:  # fmt: skip
    """Read the prompts once; choose the first token of each of `repeats` rows a prompt.

    `room`: capacity for new tokens, of which `until` will be used. `keys_B`: one key a row, B = prompts x repeats.
    """
    _, logits_BV, state, history = read_prompts(steps, prepared, prompts, room)
    # Samples of a prompt share its prefill.
    if repeats > 1:
        rows_B = jnp.repeat(jnp.arange(len(logits_BV)), repeats)
        logits_BV, state, history = logits_BV[rows_B], steps.select(state, rows_B), history.select(rows_B)
    rows = len(logits_BV)
    progress = Progress(
        state=state,
        history=history,
        logprobs_BT=jnp.zeros((rows, room), jnp.float32),
        length_B=jnp.zeros(rows, jnp.int32),
        done_B=jnp.zeros(rows, bool),
        grammar_B=None if grammar is None else jnp.zeros(rows, jnp.int32),
    )
    return choose(progress, logits_BV, keys_B, until, grammar, sampling, rules, stops)


@partial(jax.jit, static_argnames=("steps", "sampling", "rules", "stops"), donate_argnames="progress")
def go_on(
    prepared: Prepared, progress: Progress, keys_B: jax.Array, until: int, limit: int, grammar: Grammar | None = None, *,
    steps: Steps, sampling: Sampling, rules: Rules, stops: tuple[int, ...],
) -> Progress:  # fmt: skip
    """Choose tokens until there are `until` or every row is done; the grammar plans for `limit` tokens in all."""

    def going(progress: Progress) -> jax.Array:
        return (progress.history.count < until) & ~progress.done_B.all()

    def advance(progress: Progress) -> Progress:
        last_B1, _ = progress.history.last(1)
        h_BTD, state = steps.step(prepared, progress.state, last_B1)
        logits_BV = steps.logits(prepared, h_BTD[:, -1])
        return choose(progress.replace(state=state), logits_BV, keys_B, limit, grammar, sampling, rules, stops)

    return jax.lax.while_loop(going, advance, progress)


def choose(
    progress: Progress, logits_BV: jax.Array, keys_B: jax.Array, limit: int, grammar: Grammar | None, sampling: Sampling,
    rules: Rules, stops: tuple[int, ...],
) -> Progress:  # fmt: skip
    """Add one token to every row that is not done; its draw depends on the row's key and on the count alone."""
    count, done_B, grammar_B = progress.history.count, progress.done_B, progress.grammar_B
    # Rules first: where they ban everything that the grammar allows, the grammar restores the model's logits.
    scores_BV = rules.process(logits_BV, progress.history)
    if grammar is not None:
        scores_BV = grammar.allow(scores_BV, logits_BV, grammar_B, limit - count)
    tokens_B = sampling.choose(scores_BV, jax.vmap(jax.random.fold_in, (0, None))(keys_B, count))
    # Rows that are done run along until all are: their tokens and log-probabilities do not count.
    logprobs_B = jnp.where(done_B, 0, log_probability(logits_BV, tokens_B))
    tokens_B = jnp.where(done_B, 0, tokens_B)
    stopped_B = (tokens_B[:, None] == jnp.asarray(stops, jnp.int32)).any(1) if stops else jnp.zeros_like(done_B)
    if grammar is not None:
        grammar_B, ended_B = grammar.follow(grammar_B, tokens_B, done_B, limit - count - 1)
        stopped_B |= ended_B
    return progress.replace(
        history=progress.history.add(tokens_B),
        logprobs_BT=jax.lax.dynamic_update_index_in_dim(progress.logprobs_BT, logprobs_B, count, 1),
        length_B=jnp.where(done_B, progress.length_B, count + 1),
        done_B=done_B | stopped_B,
        grammar_B=grammar_B,
    )
