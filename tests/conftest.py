"""Eight simulated devices for every test, and caches that outlive a test but not the session's folder."""

import gc
import os
import sys
import tempfile
from pathlib import Path

from tests.processes import xla_flags

# Before jax is imported. Subprocesses of tests inherit the caches; compiled programs are then built once a session.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(8)
os.environ.setdefault("LM_CACHE", str(Path(tempfile.gettempdir()) / f"lm-tests-{os.getuid()}"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(os.environ["LM_CACHE"]) / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest


@pytest.fixture(scope="module", autouse=True)
def _seed():
    """Draw reference models alike whatever ran before: torch's initial values come from a state that a process shares."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _room():
    """Drop compiled programs once they take many memory maps, of which a process has 65,530: LLVM crashes without one."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 15_000:
        import jax

        jax.clear_caches()
        gc.collect()
