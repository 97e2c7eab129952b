"""How tests have XLA compile, here and in the commands they start."""

import os


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
