"""What must be set before jax computes anything: memory, compilation cache, cluster."""

import ctypes
import os
import sys
from pathlib import Path

from lm.config import check


def prepare(distributed: str | None = None) -> None:
    """Set this process up; call once, first. `distributed`: 'auto' or HOST:PORT,COUNT,INDEX joins a cluster."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("LM_CACHE") or Path.home() / ".cache" / "lm") / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if distributed == "auto":
        jax.distributed.initialize()
    elif distributed:
        parts = distributed.split(",")
        check(
            len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit(),
            f"--distributed={distributed}: give 'auto' or HOST:PORT,COUNT,INDEX",
        )
        jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]))
    if jax.default_backend() == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of handing it back to the kernel.

    XLA on a CPU takes fresh buffers every step; with malloc's defaults each comes as untouched pages, and the page
    faults cost more than a third of a training step. Other systems and allocators are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # not glibc
    arena_max, mmap_max, top_pad, trim_threshold = -8, -4, -2, -1
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    mallopt(top_pad, 64 << 20)
