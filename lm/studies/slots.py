"""Places of this machine that a run can train in: cores of a CPU, a GPU each, or all of a TPU; and its memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lm.errors import check
from lm.extensions import own_modules
from lm.platform import has_accelerator
from lm.sizes import memory


@dataclass(frozen=True)
class Slot:
    """Cores (comma-separated numbers, "": all) and environment variables of one place."""

    cores: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, module: str, *arguments: str) -> list[str]:
        """Return the command line that runs a module here; it knows the user's own modules that this process knows."""
        own = [f"--modules={','.join(modules)}"] if (modules := own_modules()) else []
        return [sys.executable, "-m", "lm.studies.pinned", self.cores, module, *arguments, *own]


def available_cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def slots_of(jobs: int = 0, cores: int = 1) -> list[Slot]:
    """Divide the machine into slots; `jobs`: how many at most, 0: as many as fit; `cores`: of each on a CPU.

    How many threads a step has may change its last bits, so that the cores of a run are a fixed number, whatever `jobs` is.
    """
    count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    gpus = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",") if one]
    cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    if count and gpus and not cpu:
        found = [Slot(environment={"CUDA_VISIBLE_DEVICES": one}) for one in gpus]
    elif has_accelerator() and not count and not cpu:  # a TPU belongs to one process
        found = [Slot()]
    else:
        own = available_cores()
        check(0 < cores <= len(own), f"--cores={cores}: this machine offers {len(own)} to the process")
        parts = [own[k : k + cores] for k in range(0, len(own) - cores + 1, cores)]
        found = [Slot(",".join(map(str, part))) for part in parts]
    check(jobs <= len(found), f"--jobs={jobs}: this machine has room for {len(found)}; lower --jobs or --cores")
    return found[: jobs or len(found)]


def memory_budget(gigabytes: float = 0) -> int:
    """Return the bytes that all runs together may use: 80 % of the machine's memory, or what is given."""
    check(gigabytes >= 0, f"--memory={gigabytes} must not be negative")
    return int(gigabytes * 1e9) or int(0.8 * memory())
