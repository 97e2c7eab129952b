"""Process settings that must precede jax: glibc's allocator and the compilation cache."""

import ctypes
import functools
import os
import sys
from pathlib import Path


def prepare() -> None:
    """Set the compilation cache; call before the first computation."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("LM_CACHE") or Path.home() / ".cache" / "lm") / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))


@functools.cache
def begin() -> None:
    """Set in Python what commands set at their start: allocator, compilation cache, Orbax's log."""
    from absl import logging

    keep_freed_memory()
    logging.set_verbosity(logging.FATAL)  # Orbax logs every file it writes; its errors become UserErrors
    prepare()


def has_accelerator() -> bool:
    """Return whether device files of GPUs or TPUs exist; jax itself must not start yet."""
    return any(next(Path("/dev").glob(name), None) for name in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*"))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of handing it back to the kernel; before jax makes its threads.

    XLA on a CPU takes fresh buffers every step; with malloc's defaults each comes as untouched pages, and the page
    faults cost up to a third of a training step. The price is a larger resident size. Machines with an accelerator and
    other systems and allocators are left alone.
    """
    if not sys.platform.startswith("linux") or has_accelerator():
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
