"""Attention kernels of accelerators: jax's splash attention for TPUs, cuDNN's fused attention for GPUs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from lm.models.attend import Call
from lm.sharding import pieces, spec


def run_splash(call: Call, interpret: bool = False) -> jax.Array:
    """Run jax's splash attention, a TPU kernel, on the rows and heads of each device.

    A kernel is made for every window of the model's layers; where they differ, the layer's own is chosen at run time.
    """
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
        def one(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
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
    mask: masks.Mask = masks.CausalMask(lengths) if causal else masks.FullMask(lengths)
    if window:
        mask &= masks.LocalMask(lengths, (window - 1, window - 1), 0)
    t, s = (next(n for n in (512, 384, 256, 128) if length % n == 0) for length in lengths)
    sizes = splash.BlockSizes(
        block_q=t, block_q_dkv=t, block_q_dq=t,
        block_kv=s, block_kv_compute=s, block_kv_dkv=s, block_kv_dkv_compute=s, block_kv_dq=s,
    )  # fmt: skip
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap or None,
        interpret=interpret,
    )


def run_cudnn(call: Call) -> jax.Array:
    """Run cuDNN's fused attention through jax; queries come scaled."""
    q, k, v = (y.swapaxes(1, 2) for y in (call.queries, call.keys, call.values))
    y = jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=call.mask.causal, implementation="cudnn")
    return y.swapaxes(1, 2)
