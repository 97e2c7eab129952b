"""Where a token stands: sinusoids, rotary angles, ALiBi slopes, T5 buckets."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import check, check_choices, check_range


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021) and how its angles are stretched for longer contexts.

    `share` is the part of each head that turns. `scaling`: "linear" divides positions by `factor` (Chen et al. 2023);
    "ntk" raises the base instead; "llama3" divides low frequencies only, with a ramp between wavelengths
    original/low and original/high; "yarn" (Peng et al. 2023) ramps between `high` and `low` turns over the original
    context, which for YaRN are its beta_fast and beta_slow, and scales the attention temperature. `local` > 0 is the base
    of the layers with a window, which are not stretched (Gemma team 2025, Gemma 3).
    """

    base: float = 10_000.0
    share: float = 1.0
    scaling: Literal["none", "linear", "ntk", "llama3", "yarn"] = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    local: float = 0.0

    def __post_init__(self):
        check_choices(self)
        check(0 <= self.share <= 1, f"rotary.share={self.share} must be from 0 to 1")
        check_range(self, 0, float("inf"), "low", "high", "local")
        check_range(self, 1, float("inf"), "original")
        finite = 0 < self.factor < float("inf") and 0 < self.base < float("inf")
        check(finite, "rotary.factor and rotary.base must be positive")


def frequencies(rotary: Rotary, head: int) -> tuple[np.ndarray, float]:
    """Angle per position of each pair (head * share / 2,), and the factor on cosines and sines (1 but for YaRN)."""
    size = int(head * rotary.share)
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    base = rotary.base * rotary.factor ** (size / (size - 2)) if rotary.scaling == "ntk" else rotary.base
    plain = base**-exponents
    if rotary.scaling == "linear":
        return (plain / rotary.factor).astype(np.float32), 1.0
    if rotary.scaling == "llama3":
        turns = rotary.original * plain / (2 * math.pi)
        keep = np.clip((turns - rotary.low) / (rotary.high - rotary.low), 0, 1)
        return (plain * (keep + (1 - keep) / rotary.factor)).astype(np.float32), 1.0
    if rotary.scaling == "yarn":

        def pair(turns):
            return size * math.log(rotary.original / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))

        first, last = max(math.floor(pair(rotary.high)), 0), min(math.ceil(pair(rotary.low)), size - 1)
        keep = 1 - np.clip((np.arange(size // 2) - first) / max(last - first, 1e-3), 0, 1)
        return (plain * (keep + (1 - keep) / rotary.factor)).astype(np.float32), 0.1 * math.log(rotary.factor) + 1.0
    return plain.astype(np.float32), 1.0


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, rotary: Rotary, window: jax.Array | int | None = None) -> jax.Array:
    """Turn pair (i, i + size/2) of every head by position x frequency[i], in float32; a `window` > 0 takes local ones."""
    inverse, factor = frequencies(rotary, x_BTNH.shape[-1])
    if rotary.local and window is not None:
        near = frequencies(replace(rotary, base=rotary.local, scaling="none"), x_BTNH.shape[-1])
        inverse, factor = (jnp.where(jnp.asarray(window) > 0, a, b) for a, b in zip(near, (inverse, factor)))
    angles = positions_BT[..., None, None].astype(jnp.float32) * inverse
    cos, sin = factor * jnp.cos(angles), factor * jnp.sin(angles)
    half = len(inverse)
    x = x_BTNH.astype(jnp.float32)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x_BTNH[..., 2 * half :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x_BTNH.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
    """Fixed embedding [sin, cos] with the halves concatenated (Vaswani et al. 2017, 3.5; layout of tensor2tensor).

    Within 1e-6 for whole positions below 2**18: a product of position and frequency in float32 would be off by 1e-4 at
    position 2000. The angle is a sum over the position's digits (base 64), sines and cosines of which are tables.
    """
    inverse = 10_000.0 ** -(np.arange(0, width, 2) / width)
    sign, size = jnp.sign(positions_BT)[..., None], jnp.abs(positions_BT)
    sin, cos = 0.0, 1.0
    for place in range(3):
        angles = np.arange(64)[:, None] * 64**place * inverse
        digit = (size >> 6 * place) & 63
        one_sin, one_cos = (jnp.asarray(f(angles), jnp.float32)[digit] for f in (np.sin, np.cos))
        sin, cos = sin * one_cos + cos * one_sin, cos * one_cos - sin * one_sin
    return jnp.concatenate([sign * sin, cos], -1)


def alibi_slopes(heads: int) -> np.ndarray:
    """Slope of each head (Press et al. 2022): a geometric series; other counts borrow from twice the power of two."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    extra = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return np.asarray(slopes + extra, np.float32)


def buckets(relative: jax.Array, *, causal: bool, number: int = 32, distance: int = 128) -> jax.Array:
    """Bucket of key position minus query position (Raffel et al. 2020): exact when near, logarithmic, then shared."""
    offset = 0
    if causal:
        gap = jnp.maximum(-relative, 0)
    else:
        number //= 2
        offset, gap = number * (relative > 0), jnp.abs(relative)
    exact = number // 2
    # Thresholds instead of a float32 logarithm: the same bucket on every backend at the exact powers.
    steps = [exact * (distance / exact) ** (i / (number - exact)) for i in range(1, number - exact)]
    limits = np.asarray([math.ceil(s - 1e-6) for s in steps])
    far = exact + jnp.searchsorted(jnp.asarray(limits), gap, side="right")
    return offset + jnp.where(gap < exact, gap, far)
