"""Names of slices and machines, and the devices they stand for, none of which has to exist.

    v5e:4x4 v5p:4x4x8 v6e:16x16 v4:4x4x4     TPU slices by libtpu's names, in chips
    2xv5e:4x4                                two such slices, joined by the network of the data centre
    cpu:8                                    simulated devices of this machine
    cuda:4x8                                 four hosts of eight GPUs each, of the kind that --target=FILE.txtpb describes

The number of slices is a part of the name, not a flag of its own: it is as much a property of the hardware as the size of a
slice, tables and files that name a topology then hold all of it, and "2xv5e:4x4" reads as it is said.
"""

import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Any

from lm.errors import UserError, check, one_line

NAMES = "names look like v5e:4x4, 2xv5e:4x4, cpu:8 or cuda:1x8"
LIBTPU = {  # libtpu off a TPU: no query to the metadata server, no lock against other processes
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
SIMULATED = "--xla_force_host_platform_device_count="


def split(topology: str) -> tuple[int, str, tuple[int, ...]]:
    """Split a name into (slices, platform or generation, sizes): 2xv5e:4x4 into (2, "v5e", (4, 4))."""
    match = re.fullmatch(r"(?:(\d+)x)?([a-zA-Z][\w ]*)[:=](\d+(?:x\d+)*)", topology)
    if match is None:
        raise UserError(f"--topology={topology}: {NAMES}")
    slices, sizes = int(match[1] or 1), tuple(map(int, match[3].split("x")))
    check(slices > 0 and min(sizes) > 0, f"--topology={topology}: sizes are at least 1; {NAMES}")
    return slices, match[2], sizes


def prepare(topology: str | None) -> None:
    """Set the variables that a topology needs before jax starts; jax itself computes on the CPU."""
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    platform, sizes = split(topology)[1:] if topology else ("", ())
    if platform == "cpu":
        check(len(sizes) == 1, f"--topology={topology}: simulated devices are one number, cpu:8")
        others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(SIMULATED)]
        os.environ["XLA_FLAGS"] = " ".join([*others, f"{SIMULATED}{sizes[0]}"])
    if platform == "cuda":  # the plug-in otherwise gives up where there is no driver
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def devices(topology: str | None, target: str | None = None) -> list[Any]:
    """Return the devices of a topology, or the local ones; call `prepare` before jax starts.

    `target`: text proto of a GPU's properties (XLA's GpuTargetConfigProto), which cuda topologies need. Raises UserError for
    a topology that does not exist, and where the library that describes it is not installed.
    """
    import jax

    if topology is None:
        return jax.devices()
    slices, platform, sizes = split(topology)
    check(not target or platform == "cuda", f"--target describes a GPU, {topology} has none")
    if platform == "cpu":
        check(slices == 1, f"--topology={topology}: simulated devices have no slices")
        found = jax.devices("cpu")
        started = f"jax has started with {len(found)} devices already"
        check(len(found) == sizes[0], f"--topology={topology}: {started}")
        return found
    return cuda(topology, slices, sizes, target) if platform == "cuda" else tpu(topology, slices, platform, sizes)


def tpu(topology: str, slices: int, generation: str, sizes: tuple[int, ...]) -> list[Any]:
    """Return the devices of TPU slices, one a chip where the generation allows it."""
    from jax.experimental import topologies

    check(importlib.util.find_spec("libtpu"), f"--topology={topology}: TPUs need libtpu: pip install libtpu")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # a v4 chip has two cores, which runs join to one device
    bounds = (*sizes, 1)[:3]
    if math.prod(sizes) < 4:
        options["chips_per_host_bounds"] = bounds  # a part of a host: libtpu expects whole hosts of 2x2 chips
    name = f"{generation}:{'x'.join(map(str, sizes))}"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # libtpu raises many kinds
        raise UserError(f"--topology={topology}: there is no such slice ({one_line(str(error), 200)}); {NAMES}") from error


def cuda(topology: str, slices: int, sizes: tuple[int, ...], target: str | None) -> list[Any]:
    """Return the GPUs of HOSTSxGPUS, described by a file, as jax's CUDA plug-in sees them without a GPU."""
    import jax
    from jax.experimental import topologies

    check(len(sizes) == 2, f"--topology={topology}: GPUs are cuda:HOSTSxGPUS, such as cuda:4x8")
    plugins = [version for version in (13, 12) if importlib.util.find_spec(f"jax_cuda{version}_plugin")]
    check(plugins, f"--topology={topology}: GPUs need jax's CUDA plug-in: pip install 'jax[cuda12]'")
    source = "XLA's sources have them: xla/backends/gpu/target_config/specs/h100_sxm.txtpb"
    if target is None:
        raise UserError(f"--topology={topology} needs --target=FILE.txtpb, the properties of the GPU; {source}")
    check(Path(target).is_file(), f"--target={target}: there is no such file; {source}")
    jax.devices()  # registers the plug-in; without a GPU jax goes on with the CPU
    shape = "x".join(map(str, (slices, *sizes)))
    try:
        text = Path(target).read_text(encoding="utf-8")
        return list(topologies.get_topology_desc(platform="cuda", target_config=text, topology=shape).devices)
    except Exception as error:  # the plug-in raises many kinds
        raise UserError(f"--topology={topology} --target={target}: {one_line(str(error), 300)}") from error
