"""The implementations of attention, their capabilities, and the choice among them.

`BACKENDS` is the one table of capabilities. An explicit `Transformer.attention` that cannot hold a call is an error; "auto"
takes the fastest that can, and says once why a faster one was not taken. Nothing of a mask is ever left out.
"""

import functools
import importlib
import sys
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.models.attend import SHORT, Bias, Mask, attend
from lm.sharding import constrain, platform

LANES = 128  # splash: lengths are multiples of it
AXIS = "context"  # the mesh axis that cuts rows: keys go around its devices in a ring


def ring_size() -> int:
    """Return the devices of the ring; 1 without a mesh, or inside a mapped function."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or AXIS in mesh.manual_axes else mesh.shape[AXIS]


@dataclass(frozen=True)
class Call:
    """One call of attention: scaled queries (B, N, T, H), keys and values (B, K, S, H), and the terms of their scores.

    `windows`: the windows of all layers, of which `mask.window` is this layer's.
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    mask: Mask
    bias: Bias | None = None
    cap: float = 0.0
    keys_B: jax.Array | None = None
    rate: float = 0.0
    windows: tuple[int, ...] = (0,)

    @property
    def lengths(self) -> tuple[int, int]:
        return self.queries.shape[2], self.keys.shape[2]

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities that the call needs, of the words in `BACKENDS`."""
        mask, lengths = self.mask, self.lengths
        found = {
            "causal": mask.causal,
            "segments": mask.segments_BT is not None,
            "window": mask.window is not None,
            "prefix": mask.prefix_BS is not None and mask.causal,
            "bias": self.bias is not None,
            "cap": bool(self.cap),
            "dropout": self.keys_B is not None and self.rate > 0,
            "grouped heads": self.queries.shape[1] != self.keys.shape[1],
            "a cache": mask.start is not None,
            "rows cut over devices": ring_size() > 1,
            "float32": self.queries.dtype == jnp.float32,
            f"lengths that are no multiples of {LANES}": any(n % LANES for n in lengths),
        }
        return frozenset(name for name, needed in found.items() if needed)


def run_direct(call: Call) -> jax.Array:
    # Every device needs all the keys of its rows: the context axis gathers them here.
    keys, values = (constrain(y, "batch", "kv_heads", None, None) for y in (call.keys, call.values))
    terms = call.bias, call.cap, call.keys_B, call.rate
    return attend(call.queries, keys, values, call.mask, *terms)


@dataclass(frozen=True)
class Backend:
    """`place`: module and function of a `Call`, imported when it is taken; `holds`: capabilities, of those in `Call.needs`.

    `hardware`: kinds of devices, of `lm.sharding.platform`.
    """

    place: str
    holds: frozenset[str]
    hardware: frozenset[str] = field(default=frozenset({"cpu", "gpu", "tpu"}))

    def run(self, call: Call) -> jax.Array:
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)(call)


MASKS = frozenset({"causal", "segments", "window", "grouped heads", "float32"})
ODD = f"lengths that are no multiples of {LANES}"
BLOCKWISE = MASKS | {"prefix", "bias", "cap", "dropout", "rows cut over devices", ODD}

# A new entry is a new choice of `Transformer.attention`. "direct" is not one: it is what short rows and caches take.
BACKENDS = {
    "direct": Backend("lm.models.backends:run_direct", BLOCKWISE | {"a cache"}),
    "blockwise": Backend("lm.models.blockwise:run_blockwise", BLOCKWISE),
    "splash": Backend("lm.models.kernels:run_splash", MASKS | {"cap"}, frozenset({"tpu"})),
    # cuDNN drops segment ids silently, so packed rows are not its.
    "cudnn": Backend("lm.models.kernels:run_cudnn", frozenset({"causal", "grouped heads", ODD}), frozenset({"gpu"})),
}
CHOICES = ("auto", "blockwise", "splash", "cudnn")


def run(choice: str, call: Call) -> jax.Array:
    """Attend by the named implementation, or by the fastest for this hardware ("auto"): (B, N, T, H).

    Raises UserError where a named one cannot hold the call.
    """
    hardware = platform()
    if call.mask.start is not None:  # decoding: one or a few queries and a cache
        return BACKENDS["direct"].run(call)
    if choice != "auto":
        backend = BACKENDS[choice]
        if hardware not in backend.hardware:
            raise UserError(
                f"attention={choice} runs on {' or '.join(sorted(backend.hardware))}, not on a {hardware}; set auto"
            )
        if missing := call.needs - backend.holds:
            raise UserError(f"attention={choice} cannot hold {', '.join(sorted(missing))}; set attention=auto or blockwise")
        return backend.run(call)
    for name in ("splash", "cudnn"):
        if hardware in BACKENDS[name].hardware:
            if not (missing := call.needs - BACKENDS[name].holds):
                return BACKENDS[name].run(call)
            say(f"attention: {name} cannot hold {', '.join(sorted(missing))}; taking blockwise")
    short = max(call.lengths) <= SHORT and ring_size() == 1
    return BACKENDS["direct" if short else "blockwise"].run(call)


@functools.cache
def say(line: str) -> None:
    """Print a notice once a process."""
    print(line, file=sys.stderr, flush=True)
