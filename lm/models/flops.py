"""Parameter counts, FLOPs of a training step, and peak rates of devices (for MFU)."""

import functools
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from lm.models.mlp import ACTIVATIONS
from lm.models.transformer import Transformer

# Dense bf16 peak of one device, FLOP/s, by a part of its `device_kind`; from the vendors' data sheets.
PEAKS = {
    "TPU v2": 46e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
}


def parameter_count(params: Any) -> int:
    """Count the numbers in a tree of (abstract) parameters."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def train_flops(model: Transformer, length: int) -> float:
    """Return the FLOPs of a training step per token, forward and backward, without the saving of a causal mask.

    6 x matrix parameters + 12 x depth x heads x head x length: Chowdhery et al. 2022, appendix B. The vocabulary
    projection counts, the look-up of embeddings does not.
    """
    attention = model.width * model.head_size * (2 * model.heads + 2 * model.kv)
    gated = ACTIVATIONS[model.activation][1]
    experts = model.experts
    feed = model.width * model.mlp_size * (3 if gated else 2) * (experts.active if experts.count else 1)
    feed += model.width * experts.count  # the router
    matrices = model.depth * (attention + feed) + model.vocab * model.width
    return 6 * matrices + 12 * model.depth * model.heads * model.head_size * length


def peak(device: jax.Device | None = None) -> float | None:
    """Return the FLOP/s of one device: from the table, measured on a CPU, None for an unknown device."""
    device = device or jax.devices()[0]
    if device.platform == "cpu":
        return matmul_rate()
    kind = device.device_kind
    # The first match counts: in the table "TPU v5 lite" stands before "TPU v5", which matches it as well.
    return next((rate for name, rate in PEAKS.items() if re.search(rf"\b{name}\b", kind, re.IGNORECASE)), None)


@functools.cache  # every run calls it twice before its first step
def matmul_rate(size: int = 1024, repeats: int = 15) -> float:
    """Measure the FLOP/s of a float32 matrix product: the best of several, as other processes slow some of them."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    # Compiled before the clock starts.
    product(x, x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
