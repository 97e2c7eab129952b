"""Checksums of arrays, by which a checkpoint shows at its restore that it is what was saved.

A checksum is a sum over elements, so that it does not depend on how an array is cut over devices: a save of one mesh is
verified on any other, and a part of a state by itself. It runs at the speed of memory, where hashes of the files would
take longer than writing them.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

THREADS = 4
COLUMNS = 4096  # numbers that are added at once: rows of a few numbers would cost one call each


def checksums(tree: Any) -> dict[str, str]:
    """Map the path of each array of a tree to its dtype, shape and checksum: "float32 2,3 0123456789abcdef".

    All processes call it together where arrays are cut over several.
    """
    named = {path_of(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
    arrays = list(named.values())
    on_host = all(not isinstance(x, jax.Array) or (x.is_fully_addressable and in_host_memory(x)) for x in arrays)
    if on_host:  # no program to compile
        with ThreadPoolExecutor(THREADS) as pool:  # numpy lets go of the interpreter while it adds
            sums = list(pool.map(host_sum, map(np.asarray, arrays)))
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
    """Read the shape in what `checksums` says of an array."""
    return tuple(int(size) for size in entry.split(" ")[1].split(",") if size)


def host_sum(x: np.ndarray) -> tuple[int, int]:
    """Add the bits of all elements, and once more weighted by the place in the last axis, modulo 2^32."""
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
    """Compute `host_sum` where the arrays are, (arrays, 2)."""

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
    """Return an odd number a place, without a pattern that neighbours share."""
    return (xp.arange(count, dtype=xp.uint32) * xp.uint32(2654435761)) | xp.uint32(1)
