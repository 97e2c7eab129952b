"""How tests have XLA compile, here and in the commands they start, and how they start them."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def xla_flags(devices: int) -> str:
    """Simulated devices, and no optimization: programs of tests run for moments, and compile four times as fast so.

    It computes a value anew for each use, and rounds otherwise there, more often than the compiler that users have: code
    that goes wrong by that fails here first.
    """
    return (
        f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )


def environment(devices: int = 1, as_users: bool = False) -> dict[str, str]:
    """Give variables for a command of its own; `as_users`: compiled as users have it, on one device."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return plain if as_users else {**plain, "XLA_FLAGS": xla_flags(devices)}


def command(
    module: str,
    *args: object,
    devices: int = 1,
    as_users: bool = False,
    seconds: float = 600,
    variables: dict[str, str] | None = None,
    folder: str | Path = ".",
) -> subprocess.CompletedProcess:
    """Run `python -m module args` in `folder`, in a process forked from one that has jax imported: seconds less a command."""
    with tempfile.TemporaryDirectory() as place:
        line = [module, *map(str, args)]
        asked = {"line": line, "folder": os.path.abspath(folder), "files": f"{place}/command", "seconds": seconds}
        server = _server(os.getpid())
        server.stdin.write(json.dumps({**asked, "variables": {**environment(devices, as_users), **(variables or {})}}) + "\n")
        server.stdin.flush()
        status = json.loads(server.stdout.readline())
        out, err = (Path(f"{place}/command.{ending}").read_text(encoding="utf-8") for ending in ("out", "err"))
    if status is None:
        raise subprocess.TimeoutExpired(line, seconds, out, err)
    return subprocess.CompletedProcess(line, status, out, err)


@functools.cache
def _server(_owner: int) -> subprocess.Popen:
    """Start the server of forked commands, which ends with this process."""
    alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # a process with threads cannot fork safely
    line, pipe = [sys.executable, "-m", "tests.forks"], subprocess.PIPE
    server = subprocess.Popen(line, env=environment() | alone, stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.stdin.close)
    return server
