"""A bound on the time of a step: the slowest of matrix products, memory and collectives, each at its full rate."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from lm.planning.hardware import Chip
from lm.planning.operations import Collective

ASSUMPTIONS = (
    "a lower bound: matrix products at the bf16 peak, memory at its full rate, collectives as rings in both directions on each "
    "torus dimension that a mesh axis covers, all three at the same time; no time for other operations, input or saves"
)


@dataclass(frozen=True)
class Bound:
    """Seconds a step of each resource, all of one device."""

    products: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        return max(self.products, self.memory, self.network)

    @property
    def limit(self) -> str:
        """The resource that bounds the step."""
        return max(("products", "memory", "network"), key=lambda name: getattr(self, name))


def along(mesh: Mesh, axes: Collection[str]) -> list:
    """Return the devices of one group along mesh axes: those at place 0 of all others."""
    places = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    return np.asarray(mesh.devices[places]).reshape(-1).tolist()


def rate(mesh: Mesh, axes: Collection[str], chip: Chip) -> float:
    """Return the bytes a second that a device sends in a collective along mesh axes."""
    group = along(mesh, axes) or mesh.devices.reshape(-1).tolist()
    tpu = group[0].platform == "tpu"
    places = {getattr(device, "slice_index", 0) if tpu else device.process_index for device in group}
    if len(places) > 1:
        return chip.network
    if not tpu:
        return chip.link
    extents = [len({*line}) for line in zip(*(device.coords for device in group), strict=True)]
    # A group that fills a box uses all its dimensions; one that lies across it (a diagonal) is given a single one.
    dimensions = sum(extent > 1 for extent in extents) if math.prod(extents) == len(group) else 1
    return 2 * chip.link * max(1, dimensions)


def factor(kind: str, group: int) -> float:
    """Return the share of a collective's bytes that each device of a group sends in a ring."""
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def network_seconds(found: Sequence[Collective], mesh: Mesh, chip: Chip) -> float:
    """Return the seconds of all collectives of a step, one after another."""
    return sum(one.count * one.bytes * factor(one.kind, one.group) / rate(mesh, one.axes, chip) for one in found)
