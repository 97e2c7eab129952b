"""Memory and rates of devices, for bounds on the time of a step; peaks of matrix products are in `lm.models.flops`."""

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device: usable memory in bytes, and rates in bytes a second and direction.

    `link`: to one neighbour on the torus of a slice, or to the other GPUs of a host; `network`: its share of the network
    between slices or hosts.
    """

    memory: int
    bandwidth: float
    link: float
    network: float


# By a part of `device_kind`, the first match counts. Memory of TPUs: the "available HBM" of libtpu 0.0.42's own error for a
# program that is too large. Bandwidth and links: Cloud TPU's pages of each version (docs.cloud.google.com/tpu/docs/v5e, ...:
# bidirectional interconnect of a chip / 2 / its 4 or 6 links). Network: v5e, v6e data-centre bandwidth of a pod / 256
# chips (6.4, 25.6 Tbit/s). Estimates, marked E, have no such source. GPUs: data sheets (HBM, NVLink in one direction,
# PCIe where there is no NVLink); usable memory less 1 GiB for the driver E, network 400 Gbit/s a GPU or less E.
CHIPS = {
    "TPU v4": Chip(int(30.75 * GIB), 1.2e12, 50e9, 6.25e9),  # link, network E
    "TPU v5 lite": Chip(int(15.75 * GIB), 819e9, 50e9, 3.125e9),
    "TPU v5e": Chip(int(15.75 * GIB), 819e9, 50e9, 3.125e9),
    "TPU v5": Chip(int(95.74 * GIB), 2765e9, 100e9, 6.25e9),  # v5p; network E
    "TPU v6": Chip(int(31.25 * GIB), 1640e9, 100e9, 12.5e9),
    "T4": Chip(14 * GIB, 320e9, 16e9, 3e9),
    "L4": Chip(23 * GIB, 300e9, 32e9, 6e9),
    "A100.*80GB": Chip(79 * GIB, 2039e9, 300e9, 25e9),
    "A100": Chip(39 * GIB, 1555e9, 300e9, 25e9),
    "H100": Chip(79 * GIB, 3350e9, 450e9, 50e9),
    "H200": Chip(139 * GIB, 4800e9, 450e9, 50e9),
    "B200": Chip(178 * GIB, 8000e9, 900e9, 50e9),
}


def chip_of(kind: str) -> Chip | None:
    """Return the rates of a device by its `device_kind`, None for one that is not in the table."""
    return next((chip for name, chip in CHIPS.items() if re.search(rf"\b{name}\b", kind, re.IGNORECASE)), None)
