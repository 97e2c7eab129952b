"""Checksums of arrays, by which a restore detects a damaged checkpoint.

A checksum is a sum over elements, so it does not depend on how an array is sharded: a save of one mesh is verified on any
other, and a part of a state by itself. It runs at memory bandwidth; hashing the files would take longer than writing them.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

THREADS = 4
COLUMNS = 4096  # elements summed per numpy call: rows of a few elements would cost one call each


def checksums(tree: Any) -> dict[str, str]:
    """Map the path of each array of a tree to its dtype, shape and checksum: "float32 2,3 0123456789abcdef".

    A collective call where arrays are sharded over several processes.
    """
    named = {path_of(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
    arrays = list(named.values())
    on_host = all(not isinstance(x, jax.Array) or (x.is_fully_addressable and in_host_memory(x)) for x in arrays)
    if on_host:  # no program to compile
        with ThreadPoolExecutor(THREADS) as pool:  # numpy releases the interpreter lock while it adds
            sums: Iterable[tuple[int, int]] = list(pool.map(host_sum, map(np.asarray, arrays)))
    else:
        sums = np.asarray(jax.device_get(device_sums(arrays)))
    return {
        name: f"{np.dtype(x.dtype).name} {','.join(map(str, x.shape))} {int(plain):08x}{int(weighted):08x}"
        for (name, x), (plain, weighted) in zip(named.items(), sums)
    }


def in_host_memory(x: jax.Array) -> bool:
    return next(iter(x.devices())).platform == "cpu"


def path_of(path: Any) -> str:
    """Join the keys of a path in a tree by slashes."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def shape_in(entry: str) -> tuple[int, ...]:
    """Parse the shape out of an entry of `checksums`."""
    return tuple(int(size) for size in entry.split(" ")[1].split(",") if size)


def host_sum(x: np.ndarray) -> tuple[int, int]:
    """Sum the bits of all elements, plainly and weighted by the index along the last axis, both modulo 2^32."""
    # 64-bit elements count as two words. Columns are summed first: the weights then multiply one row, not the array.
    last = (x.shape[-1] if x.ndim else 1) * (2 if x.itemsize == 8 else 1)
    words = np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.itemsize, 4)}")
    if not words.size:
        return 0, 0
    rows = words.size // last
    while rows % 2 == 0 and last * (words.size // last // rows) < COLUMNS:
        rows //= 2
    columns = words.reshape(rows, -1).sum(0, dtype=np.uint32).reshape(-1, last).sum(0, dtype=np.uint32)
    return int(columns.sum(dtype=np.uint32)), int((columns * weights(np, last)).sum(dtype=np.uint32))


@jax.jit
def device_sums(arrays: list[jax.Array]) -> jax.Array:
    """Compute `host_sum` on the devices, uint32 (arrays, 2)."""

    def one(x):
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        size = min(x.dtype.itemsize, 4)
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
        last = (x.shape[-1] if x.ndim else 1) * (2 if x.dtype.itemsize == 8 else 1)
        columns = words.reshape(-1, last).sum(0, dtype=jnp.uint32)
        return jnp.stack([columns.sum(dtype=jnp.uint32), (columns * weights(jnp, last)).sum(dtype=jnp.uint32)])

    return jnp.stack([one(x) for x in arrays])


def weights(xp: Any, count: int) -> Any:
    """Return one odd multiplier per index: odd, so that no bit is lost modulo 2^32; hashed, so that swaps change the sum."""
    return (xp.arange(count, dtype=xp.uint32) * xp.uint32(2654435761)) | xp.uint32(1)
