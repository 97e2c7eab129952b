"""Reordering of beams: the cache of each row becomes that of another row of the same prompt."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.decode.steps import StackState, Steps

BLOCK = 32  # tokens of the caches that are moved at a time


def reorder(steps: Steps, state: Any, rows_R: jax.Array, since: jax.Array) -> Any:
    """Return the state whose row i is row `rows_R[i]` of this one, of the same prompt; both are equal before column `since`.

    Of a cache only later keys and values move, block by block in place; those of a source are the prompt's. Copying the
    whole cache takes longer than the step itself: 44 and 29 ms for 4 beams of GPT-2 124M at 980 tokens, on 2 cores.
    """
    if not isinstance(state, StackState):
        return steps.select(state, rows_R)
    layers, crossed = state.cache.layers, isinstance(state.cache.layers[0][0], tuple)
    own = tuple(layer[0] if crossed else layer for layer in layers)
    room = own[0][0].shape[-2]
    size = min(BLOCK, room)

    def move_block(i: jax.Array, own: Any) -> Any:
        at = jnp.minimum(i * size, room - size)
        here_S1 = (at + jnp.arange(size) >= i * size)[:, None]  # the last block may reach back into the one before

        def move(x_RKSH: jax.Array) -> jax.Array:
            old = jax.lax.dynamic_slice_in_dim(x_RKSH, at, size, 2)
            return jax.lax.dynamic_update_slice_in_dim(x_RKSH, jnp.where(here_S1, old[rows_R], old), at, 2)

        return jax.tree.map(move, own)

    own = jax.lax.fori_loop(since // size, -(-state.cache.length // size), move_block, own)
    layers = tuple((pair, layer[1]) for pair, layer in zip(own, layers)) if crossed else own
    return state.replace(cache=state.cache.replace(layers=layers))
