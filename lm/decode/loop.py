"""The token loop: a compiled first pass over the prompts, then one compiled while-loop for all new tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lm.decode.sampling import Sampling, log_probability
from lm.decode.steps import Steps


class Progress(struct.PyTreeNode):
    """Rows under way: `count` tokens chosen so far, of which row i has the first `length_B[i]`, a stop token included.

    `logprobs_BT` holds each token's natural log-probability under the model itself.
    """

    state: Any
    tokens_BT: jax.Array
    logprobs_BT: jax.Array
    length_B: jax.Array
    done_B: jax.Array
    count: jax.Array


@partial(jax.jit, static_argnames=("steps", "sampling", "stops", "room", "repeats"))
def begin(
    prepared: Any,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    keys_B: jax.Array,
    *,
    steps: Steps,
    sampling: Sampling,
    stops: tuple[int, ...],
    room: int,
    repeats: int = 1,
) -> Progress:
    """Read the prompts, left-padded, once; choose the first token of each of `repeats` rows a prompt.

    `room`: new tokens there is space for. `keys_B`: one key a row, B = prompts x repeats.
    """
    prompts, width = tokens_BT.shape
    logits_BV, state = steps.prefill(prepared, tokens_BT, segments_BT, width + room)
    if repeats > 1:
        rows_B = jnp.repeat(jnp.arange(prompts), repeats)
        logits_BV, state = logits_BV[rows_B], steps.select(state, rows_B)
    rows = prompts * repeats
    progress = Progress(
        state=state,
        tokens_BT=jnp.zeros((rows, room), jnp.int32),
        logprobs_BT=jnp.zeros((rows, room), jnp.float32),
        length_B=jnp.zeros(rows, jnp.int32),
        done_B=jnp.zeros(rows, bool),
        count=jnp.zeros((), jnp.int32),
    )
    return choose(progress, logits_BV, keys_B, sampling, stops)


@partial(jax.jit, static_argnames=("steps", "sampling", "stops"), donate_argnames="progress")
def go_on(
    prepared: Any,
    progress: Progress,
    keys_B: jax.Array,
    until: int,
    *,
    steps: Steps,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Progress:
    """Choose tokens until there are `until` (at most the room) or every row is done."""

    def going(progress):
        return (progress.count < until) & ~progress.done_B.all()

    def one(progress):
        last_B = jax.lax.dynamic_index_in_dim(progress.tokens_BT, progress.count - 1, 1, keepdims=False)
        logits_BV, state = steps.step(prepared, progress.state, last_B)
        return choose(progress.replace(state=state), logits_BV, keys_B, sampling, stops)

    return jax.lax.while_loop(going, one, progress)


def choose(progress: Progress, logits_BV, keys_B, sampling: Sampling, stops: tuple[int, ...]) -> Progress:
    """Add one token to every row that is not done; its draw depends on the row's key and on `count` alone."""
    count, done_B = progress.count, progress.done_B
    tokens_B = sampling.choose(logits_BV, jax.vmap(jax.random.fold_in, (0, None))(keys_B, count))
    logprobs_B = jnp.where(done_B, 0, log_probability(logits_BV, tokens_B))
    tokens_B = jnp.where(done_B, 0, tokens_B)
    stopped_B = (tokens_B[:, None] == jnp.asarray(stops, jnp.int32)).any(1) if stops else jnp.zeros_like(done_B)
    write = jax.lax.dynamic_update_index_in_dim
    return progress.replace(
        tokens_BT=write(progress.tokens_BT, tokens_B, count, 1),
        logprobs_BT=write(progress.logprobs_BT, logprobs_B, count, 1),
        length_B=jnp.where(done_B, progress.length_B, count + 1),
        done_B=done_B | stopped_B,
        count=count + 1,
    )
