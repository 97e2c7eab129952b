"""Arrays assembled on their devices from blocks of rows, so that the host never holds a whole one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fill(blocks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, ...], place: jax.sharding.Sharding) -> jax.Array:
    """Assemble a float32 array of `shape` from blocks (first row, rows), each sent on before the next is read.

    Every process reads all blocks and sends its own devices their part; rows in no block are 0.
    """
    spans = {
        device: [slice(*one.indices(size)) for one, size in zip(index, shape, strict=True)]
        for device, index in place.addressable_devices_indices_map(shape).items()
    }
    # One buffer per device: a block is read once and copied to all devices that it overlaps.
    held: dict[Any, jax.Array] = {}
    for start, block in blocks:
        for device, span in spans.items():
            held[device] = insert(held.get(device), block, start, span, device)
    return jax.make_array_from_single_device_arrays(shape, place, list(held.values()))


def insert(held: jax.Array | None, block: np.ndarray, start: int, span: list[slice], device: Any) -> jax.Array:
    """Copy the block's overlap with the device's slice into its buffer."""
    if not span:
        return jax.device_put(block, device)
    low, high = max(start, span[0].start), min(start + len(block), span[0].stop)
    part = block[(slice(low - start, max(low, high) - start), *span[1:])]
    size = tuple(one.stop - one.start for one in span)
    # The block covers the whole slice: no buffer of zeros, which would take its memory twice.
    if part.shape == size:
        return jax.block_until_ready(jax.device_put(np.ascontiguousarray(part), device))
    held = jnp.zeros(size, jnp.float32, device=device) if held is None else held
    if low < high:
        held = write(held, jax.device_put(np.ascontiguousarray(part), device), low - span[0].start)
    return jax.block_until_ready(held)  # else blocks queue up in host memory


@partial(jax.jit, donate_argnums=0)
def write(held: jax.Array, part: jax.Array, at: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(held, part, at, 0)
