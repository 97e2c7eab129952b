"""How tests have XLA compile, here and in the commands they start."""

import os


def xla_flags(devices: int) -> str:
    """Simulated devices, and little optimization: programs of tests run for moments, and compile three times as fast so.

    Not level 0: without fusion emitters it gave wrong samples (jaxlib 0.10, `tests/decode/test_masked.py` found it).
    """
    return (
        f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
    )


def environment(devices: int = 1, as_users: bool = False) -> dict[str, str]:
    """Give variables for a command of its own; `as_users`: compiled as users have it, on one device."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return plain if as_users else {**plain, "XLA_FLAGS": xla_flags(devices)}
