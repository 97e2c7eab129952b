"""Work that each process does by itself: its own mesh, and copies on it of parameters that several processes share.

Samples, tasks and predictions fetch arrays to the host, which jax allows only for arrays of one process. So every process
copies the parameters onto its own devices and does the same work: none waits for another, and the figures are those of one
process. The limit: a copy must fit on the devices of a process beside its shards of the state (`check_copy`).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm.sharding import AXES, make_mesh
from lm.training.state import check_device_memory


@functools.cache
def own_mesh(mesh: jax.sharding.Mesh, rows: int) -> jax.sharding.Mesh:
    """Return a mesh of this process's devices, `rows` divided among them: `mesh` itself where it has no others."""
    devices = jax.local_devices()
    if jax.process_count() == 1:
        return mesh
    count = len(devices) if rows % len(devices) == 0 else 1
    return make_mesh(dict.fromkeys(AXES, 1) | {"fsdp": count}, devices[:count])


def own_copy(params: Any, mesh: jax.sharding.Mesh) -> Any:
    """Copy parameters onto this process's mesh, an array at a time; alone, return them as they are. A collective call."""
    if jax.process_count() == 1:
        return params
    from jax.experimental import multihost_utils

    def one(x: jax.Array) -> jax.Array:
        spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else PartitionSpec()
        whole = np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return jax.device_put(whole, NamedSharding(mesh, fitting(spec, x.shape, mesh)))

    return jax.tree.map(one, params)


def fitting(spec: PartitionSpec, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
    """Return a spec without the axes that do not divide on another mesh."""

    def divides(entry: Any, size: int) -> bool:
        names = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        return size % math.prod(mesh.shape[name] for name in names) == 0

    return PartitionSpec(*(entry if divides(entry, size) else None for entry, size in zip(spec, shape)))


def check_copy(params: Any, mesh: jax.sharding.Mesh) -> None:
    """Raise UserError where a copy of the (abstract) parameters does not fit on this process's devices."""
    if jax.process_count() == 1:
        return
    size = 0
    for x in jax.tree.leaves(params):
        layout = NamedSharding(mesh, fitting(x.sharding.spec, x.shape, mesh))
        size += math.prod(layout.shard_shape(x.shape)) * x.dtype.itemsize
    remedy = "leave out every.sample, evaluate and labelled figures, and use lm.evaluate --mesh on a larger host afterwards"
    check_device_memory(size, "a copy of the parameters for samples, tasks and predictions", remedy)


def from_lead(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of process 0, bit for bit, in every process; all have the same names. A collective call."""
    if jax.process_count() == 1 or not figures:
        return dict(figures)
    from jax.experimental import multihost_utils

    # As words: jax would round float64 to float32.
    words = np.array([float(value) for value in figures.values()], np.float64).view(np.uint32)
    lead = np.ascontiguousarray(np.asarray(multihost_utils.process_allgather(words))[0]).view(np.float64)
    return dict(zip(figures, lead.tolist(), strict=True))
