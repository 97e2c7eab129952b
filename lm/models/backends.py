"""The implementations of attention, their capabilities, and the choice among them.

`BACKENDS` is the one table of capabilities. An explicit `Transformer.attention` that cannot hold a call is an error; "auto"
takes the fastest that can, and says once why a faster one was not taken. Nothing of a mask is ever left out.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import jax

from lm.errors import UserError
from lm.models.attend import ODD, SHORT, Call, attend, ring_size
from lm.sharding import platform


def blockwise(call: Call) -> jax.Array:
    from lm.models.blockwise import run_blockwise  # for long rows

    return run_blockwise(call)


def kernels() -> ModuleType:
    from lm.models import kernels  # on accelerators

    return kernels


EVERYWHERE = frozenset({"cpu", "gpu", "tpu"})


@dataclass(frozen=True)
class Backend:
    """`holds`: capabilities, of those in `Call.needs`; `hardware`: kinds of devices, of `lm.sharding.platform`."""

    run: Callable[[Call], jax.Array]
    holds: frozenset[str]
    hardware: frozenset[str] = EVERYWHERE


MASKS = frozenset({"causal", "segments", "window", "grouped heads", "float32"})
BLOCKWISE = MASKS | {"prefix", "bias", "cap", "dropout", "rows cut over devices", ODD}

# A new entry is a new choice of `Transformer.attention`; those for some hardware come before the others under "auto".
BACKENDS = {
    "blockwise": Backend(blockwise, BLOCKWISE),
    "splash": Backend(lambda call: kernels().run_splash(call), MASKS | {"cap"}, frozenset({"tpu"})),
    # cuDNN drops segment ids silently, so packed rows are not its.
    "cudnn": Backend(lambda call: kernels().run_cudnn(call), frozenset({"causal", "grouped heads", ODD}), frozenset({"gpu"})),
}
CHOICES = ("auto", *BACKENDS)


def run(choice: str, call: Call) -> jax.Array:
    """Attend by the named implementation, or by the fastest for this hardware ("auto"): (B, N, T, H).

    Short rows are attended to directly under "auto", and those with a cache always. Raises UserError where a named
    implementation cannot hold the call.
    """
    hardware = platform()
    if call.mask.start is not None:  # decoding: one or a few queries and a cache
        return attend(call)
    if choice != "auto":
        backend = BACKENDS[choice]
        if hardware not in backend.hardware:
            raise UserError(f"attention={choice} runs on {'/'.join(sorted(backend.hardware))}, not on a {hardware}; set auto")
        if missing := call.needs - backend.holds:
            raise UserError(f"attention={choice} cannot hold {', '.join(sorted(missing))}; set attention=auto or blockwise")
        return backend.run(call)
    for name, backend in BACKENDS.items():
        if hardware in backend.hardware and backend.hardware != EVERYWHERE:
            if not (missing := call.needs - backend.holds):
                return backend.run(call)
            say(f"attention: {name} cannot hold {', '.join(sorted(missing))}, so that plain products take its place")
    return attend(call) if max(call.lengths) <= SHORT and ring_size() == 1 else blockwise(call)


@functools.cache
def say(line: str) -> None:
    """Print a notice once a process."""
    print(line, file=sys.stderr, flush=True)
