"""Run a module on some of the machine's cores: `python -m lm.studies.pinned 0,1 lm.main --workdir=...`.

XLA makes as many threads as there are cores in the affinity mask of its process, so the mask must be set before jax starts.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    cores, module = sys.argv[1:3]
    if cores and hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
