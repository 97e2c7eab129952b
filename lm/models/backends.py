"""The implementations of attention, what each can hold, and the choice among them.

`BACKENDS` is the one table of capabilities. An explicit `Transformer.attention` that cannot hold a call is an error; "auto"
takes the fastest that can, and says once why a faster one was not taken. Nothing of a mask is ever left out.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.errors import UserError
from lm.models.attend import SHORT, Bias, Mask, attend, attention_scores, seeds, visible
from lm.models.blocks import Rule
from lm.models.blockwise import Operands, blockwise, ring_size
from lm.sharding import constrain, pieces, platform, spec

LANES = 128  # splash: lengths are multiples of it


@dataclass(frozen=True)
class Call:
    """One call of attention: scaled queries (B, N, T, H), keys and values (B, K, S, H), and what acts on their scores.

    `windows`: the windows of all layers, of which `mask.window` is this layer's.
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    mask: Mask
    bias: Bias = None
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
    options = {"cap": call.cap, "keys_B": call.keys_B, "rate": call.rate}
    return attend(call.queries, keys, values, mask=call.mask, bias=call.bias, **options)


def run_blockwise(call: Call) -> jax.Array:
    """Attend in blocks; the bias becomes a function of arrays that it was given, so that they have gradients."""
    mask, causal = call.mask, call.mask.causal
    bias, shared = None, ()
    if call.bias is not None:
        # The example's size is of no meaning: each block calls the function again.
        bias, shared = hoisted(call.bias)

    def scores(q: jax.Array, k: jax.Array, shared: Any, t: jax.Array, s: jax.Array) -> jax.Array:
        return attention_scores(q, k, None if bias is None else bias(s[None, :] - t[:, None], shared), call.cap)

    def allowed(query_marks: Any, key_marks: Any, window: Any, t: jax.Array, s: jax.Array) -> jax.Array | None:
        segments = (query_marks[0], key_marks[0]) if query_marks else None
        prefix_BS = key_marks[-1] if mask.prefix_BS is not None and causal else None
        return visible(t, s, segments, prefix_BS, window, causal)

    def needed(window: Any, t: jax.Array, s: jax.Array) -> jax.Array | None:
        conditions = []
        if causal and mask.prefix_BS is None:
            conditions.append(s[0] <= t[-1])
        if window is not None:
            far = jnp.maximum(t[0] - s[-1], s[0] - t[-1])  # the smallest distance of the two blocks
            conditions.append((jnp.asarray(window) <= 0) | (far < window))
        return functools.reduce(jnp.logical_and, conditions) if conditions else None

    segments = mask.segments_BT is not None
    key_marks = ((mask.segments_BS,) if segments else ()) + ((mask.prefix_BS,) if mask.prefix_BS is not None and causal else ())
    given = Operands(
        queries=constrain(call.queries, "batch", "heads", "length", None),
        keys=call.keys,
        values=call.values,
        shared=shared,
        query_marks=(mask.segments_BT,) if segments else (),
        key_marks=key_marks,
        whole=mask.window,
        seeds_B2=seeds(call.keys_B) if call.rate else None,
    )
    balanced = causal and mask.prefix_BS is None
    return blockwise(Rule(scores, allowed, needed, call.queries.shape[1], balanced, call.rate), given)


def hoisted(bias: Callable[[jax.Array], jax.Array]) -> tuple[Callable[[jax.Array, Any], jax.Array], Any]:
    """Return a bias as a function of distances and the arrays that it holds, and those arrays."""

    def call(distances: jax.Array, arrays: Any) -> jax.Array:
        return jax.closure_convert(bias, distances)[0](distances, *arrays)

    return call, jax.closure_convert(bias, jnp.zeros((1, 1), jnp.int32))[1]


def run_splash(call: Call, interpret: bool = False) -> jax.Array:
    """Run jax's splash attention, a TPU kernel, on the rows and heads of each device.

    A kernel is made for every window of the model's layers; where they differ, the layer's own is chosen at run time.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    mesh, heads = jax.sharding.get_abstract_mesh(), call.queries.shape[1]
    keys, values = call.keys, call.values
    tensor = pieces("heads")[0]
    if keys.shape[1] % tensor:  # fewer key heads than devices: each query head gets its own
        keys, values = (jnp.repeat(y, heads // y.shape[1], 1) for y in (keys, values))
    ones = [jnp.ones((keys.shape[0], n), jnp.int32) for n in call.lengths]
    segments = ones if call.mask.segments_BT is None else [call.mask.segments_BT, call.mask.segments_BS]
    windows = sorted(set(call.windows)) if call.mask.window is not None else [0]
    kernels = [splash_kernel(call.lengths, call.mask.causal, w, heads // tensor, call.cap, interpret) for w in windows]
    index = jnp.searchsorted(jnp.asarray(windows), jnp.asarray(0 if call.mask.window is None else call.mask.window))

    def rows(index: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        def one(kernel: Any) -> Callable[[Any], jax.Array]:
            return lambda given: jax.vmap(kernel)(*given[:3], splash.SegmentIds(q=given[3], kv=given[4]))

        given = (q, k, v, a, b)
        return one(kernels[0])(given) if len(kernels) == 1 else jax.lax.switch(index, [one(k) for k in kernels], given)

    arguments = (index, call.queries, keys, values, *segments)
    if mesh.empty:
        return rows(*arguments)
    by_head, by_row = spec(("batch", "heads", None, None)), spec(("batch", None))
    layout = (PartitionSpec(), by_head, by_head, by_head, by_row, by_row)
    return jax.shard_map(rows, in_specs=layout, out_specs=by_head, check_vma=False)(*arguments)


def splash_kernel(lengths: tuple[int, int], causal: bool, window: int, heads: int, cap: float, interpret: bool) -> Any:
    """Make the kernel of one device's heads for one mask."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    mask = masks.CausalMask(lengths) if causal else masks.FullMask(lengths)
    if window:
        mask &= masks.LocalMask(lengths, (window - 1, window - 1), 0)
    t, s = (next(n for n in (512, 384, 256, 128) if length % n == 0) for length in lengths)
    queries = dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), t)
    names = ("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq")
    sizes = splash.BlockSizes(**queries, **dict.fromkeys(names, s))
    options = {"head_shards": 1, "q_seq_shards": 1, "attn_logits_soft_cap": cap or None, "interpret": interpret}
    return splash.make_splash_mha(masks.MultiHeadMask([mask] * heads), block_sizes=sizes, **options)


def run_cudnn(call: Call) -> jax.Array:
    """Run cuDNN's fused attention through jax; queries come scaled."""
    q, k, v = (y.swapaxes(1, 2) for y in (call.queries, call.keys, call.values))
    y = jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=call.mask.causal, implementation="cudnn")
    return y.swapaxes(1, 2)


@dataclass(frozen=True)
class Backend:
    """`holds`: capabilities, of those in `Call.needs`; `hardware`: kinds of devices, of `lm.sharding.platform`."""

    run: Callable[[Call], jax.Array]
    holds: frozenset[str]
    hardware: frozenset[str] = field(default=frozenset({"cpu", "gpu", "tpu"}))


MASKS = frozenset({"causal", "segments", "window", "grouped heads", "float32"})
ODD = f"lengths that are no multiples of {LANES}"
BLOCKWISE = MASKS | {"prefix", "bias", "cap", "dropout", "rows cut over devices", ODD}

# A new entry is a new choice of `Transformer.attention`. "direct" is not one: it is what short rows and caches take.
BACKENDS = {
    "direct": Backend(run_direct, BLOCKWISE | {"a cache"}),
    "blockwise": Backend(run_blockwise, BLOCKWISE),
    "splash": Backend(run_splash, MASKS | {"cap"}, frozenset({"tpu"})),
    # cuDNN drops segment ids silently, so packed rows are not its.
    "cudnn": Backend(run_cudnn, frozenset({"causal", "grouped heads", ODD}), frozenset({"gpu"})),
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
