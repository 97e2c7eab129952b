"""Position encodings (sinusoids, rotary angles, ALiBi slopes, T5 buckets) and the table of them: `POSITIONS`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.errors import UserError, check, check_choices, check_range
from lm.models.attend import Bias
from lm.models.layers import Embed, named


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary position embedding (RoPE, Su et al. 2021) and the stretching of its angles for longer contexts.

    `share` is the rotated fraction of each head. `scaling`: "linear" divides positions by `factor` (Chen et al. 2023);
    "ntk" raises the base instead; "llama3" divides low frequencies only, with a ramp between wavelengths
    original/low and original/high; "yarn" (Peng et al. 2023) ramps between `high` (its beta_fast) and `low` (beta_slow)
    rotations over the original context, and scales the attention temperature. `local` > 0 is the base of the layers
    with a window, which are not stretched (Gemma team 2025, Gemma 3).
    """

    base: float = 10_000.0  # of the wavelengths
    share: float = 1.0
    scaling: Literal["none", "linear", "ntk", "llama3", "yarn"] = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192  # context that the model was trained on, in tokens
    local: float = 0.0

    def __post_init__(self):
        check_choices(self)
        check(0 <= self.share <= 1, f"rotary.share={self.share} must be from 0 to 1")
        check_range(self, 0, float("inf"), "low", "high", "local")
        check_range(self, 1, float("inf"), "original")
        finite = 0 < self.factor < float("inf") and 0 < self.base < float("inf")
        check(finite, "rotary.factor and rotary.base must be positive")


def frequencies(rotary: Rotary, head: int) -> tuple[np.ndarray, float]:
    """Return the angle per position of each pair, (head * share / 2,), and the factor on cosines and sines (YaRN; else 1)."""
    size = int(head * rotary.share)
    # In float64 and rounded once: a far position multiplies every error of its frequency.
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    # The exponent stretches the longest wavelength by exactly `factor` and leaves the shortest.
    base = rotary.base * rotary.factor ** (size / (size - 2)) if rotary.scaling == "ntk" else rotary.base
    plain = base**-exponents
    if rotary.scaling == "linear":
        return (plain / rotary.factor).astype(np.float32), 1.0
    # Wavelengths longer than the original context were never seen in full: only those are stretched.
    if rotary.scaling == "llama3":
        turns = rotary.original * plain / (2 * math.pi)
        keep = np.clip((turns - rotary.low) / (rotary.high - rotary.low), 0, 1)
        return (plain * (keep + (1 - keep) / rotary.factor)).astype(np.float32), 1.0
    if rotary.scaling == "yarn":

        def pair(turns: float) -> float:
            # Index of the pair, a fraction, that makes so many turns over the original context.
            return size * math.log(rotary.original / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))

        first, last = max(math.floor(pair(rotary.high)), 0), min(math.ceil(pair(rotary.low)), size - 1)
        keep = 1 - np.clip((np.arange(size // 2) - first) / max(last - first, 1e-3), 0, 1)
        return (plain * (keep + (1 - keep) / rotary.factor)).astype(np.float32), 0.1 * math.log(rotary.factor) + 1.0
    return plain.astype(np.float32), 1.0


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, rotary: Rotary, window: jax.Array | int | None = None) -> jax.Array:
    """Rotate pair (i, i + size/2) of every head by position x frequency[i], in float32.

    Layers with a `window` > 0 take the frequencies of `rotary.local`.
    """
    inverse: jax.Array | np.ndarray
    factor: jax.Array | float
    inverse, factor = frequencies(rotary, x_BTNH.shape[-1])
    if rotary.local and window is not None:  # windows are traced where layers are scanned: both are computed, one chosen
        near = frequencies(replace(rotary, base=rotary.local, scaling="none"), x_BTNH.shape[-1])
        local = jnp.asarray(window) > 0
        inverse, factor = jnp.where(local, near[0], inverse), jnp.where(local, near[1], factor)
    # Float32 whatever x is: bfloat16 has no odd numbers above 256.
    angles = positions_BT[..., None, None].astype(jnp.float32) * inverse
    cos, sin = factor * jnp.cos(angles), factor * jnp.sin(angles)
    half = len(inverse)
    x = x_BTNH.astype(jnp.float32)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x_BTNH[..., 2 * half :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x_BTNH.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
    """Return sinusoids [sin, cos], (B, T, width), halves concatenated (Vaswani et al. 2017, 3.5; layout of tensor2tensor).

    Within 1e-6 for whole positions below 2**18: a product of position and frequency in float32 would be off by 1e-4 at
    position 2000. So the angle is a sum over the position's digits (base 64), whose sines and cosines are tables.
    """
    inverse = 10_000.0 ** -(np.arange(0, width, 2) / width)
    sign, size = jnp.sign(positions_BT)[..., None], jnp.abs(positions_BT)
    sin: jax.Array | float = 0.0
    cos: jax.Array | float = 1.0
    for place in range(3):
        angles = np.arange(64)[:, None] * 64**place * inverse
        digit = (size >> 6 * place) & 63
        one_sin, one_cos = (jnp.asarray(f(angles), jnp.float32)[digit] for f in (np.sin, np.cos))
        sin, cos = sin * one_cos + cos * one_sin, cos * one_cos - sin * one_sin
    return jnp.concatenate([sign * sin, cos], -1)


def alibi_slopes(heads: int) -> np.ndarray:
    """Return the slope of each head (Press et al. 2022): a geometric series.

    A number of heads between powers of two takes every other slope of the next power for the rest.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    extra = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return np.asarray(slopes + extra, np.float32)


def buckets(relative: jax.Array, *, causal: bool, number: int = 32, distance: int = 128) -> jax.Array:
    """Return the bucket of key position minus query position (Raffel et al. 2020): one each when near, then logarithmic."""
    offset: jax.Array | int = 0
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


@dataclass(frozen=True, kw_only=True)
class PositionKind:
    """A position encoding as functions of the stack's config, a `Transformer`; None: it does not act there.

    `added(config, positions_BT, width, dtype)`: vectors (B, T, width) to add to the token vectors.
    `bias(config, param, causal)`: the additive attention bias; `param` declares a parameter of the stack.
    `rotate(x_BTNH, positions_BT, config, window)`: queries or keys, rotated.
    `check(config)` raises UserError for sizes that the encoding cannot have.
    `context`: rows of a "table", a "bound" on the lengths trained for, or "free" where distances alone count.
    """

    added: Callable[[Any, jax.Array, int, jnp.dtype], jax.Array] | None = None
    bias: Callable[[Any, Callable[..., jax.Array], bool], Bias] | None = None
    rotate: Callable[[jax.Array, jax.Array, Any, jax.Array | int | None], jax.Array] | None = None
    check: Callable[[Any], None] | None = None
    context: Literal["table", "bound", "free"] = "bound"


def learned(c: Any, positions_BT: jax.Array, width: int, dtype: jnp.dtype) -> jax.Array:
    """Look positions up in a table of `context` rows, the first at row `offset`."""
    table = {"std": c.init_positions, "truncate": c.init_truncate, "name": "places"}
    return Embed(c.context + c.offset, width, axis="position", **table)(positions_BT + c.offset, dtype)


def alibi(c: Any, param: Callable[..., jax.Array], causal: bool) -> Bias:
    slopes_N11 = alibi_slopes(c.heads)[:, None, None]
    return Bias(lambda distances_TS: jnp.abs(distances_TS).astype(jnp.float32) * -slopes_N11)


def bucketed(c: Any, param: Callable[..., jax.Array], causal: bool) -> Bias:
    """Look the buckets of distances up in one table for all layers (Raffel et al. 2020)."""
    init = nn.initializers.normal(c.width**-0.5 if c.init_fan_in else c.init)
    table = param("buckets", named(init, (None, "heads")), (32, c.heads))
    return Bias(lambda distances_TS, table: table[buckets(distances_TS, causal=causal)].transpose(2, 0, 1), (table,))


def check_sinusoidal(c: Any) -> None:
    check(c.width % 2 == 0, f"sinusoidal positions need an even width, not {c.width}")


def check_rotary(c: Any) -> None:
    size = int(c.head_size * c.rotary.share)
    check(size % 2 == 0, f"rotary positions need an even head size, not {c.head_size} x {c.rotary.share}")
    if c.rotary.scaling == "ntk" and size < 4:  # the base's exponent is size / (size - 2)
        raise UserError("rotary scaling 'ntk' needs more than one pair of each head to turn")


# A new entry is a new choice of `Transformer.positions`.
POSITIONS = {
    "none": PositionKind(),
    "learned": PositionKind(added=learned, context="table"),
    "sinusoidal": PositionKind(
        added=lambda c, positions_BT, width, dtype: sinusoids(positions_BT, width).astype(dtype), check=check_sinusoidal
    ),
    "rotary": PositionKind(
        rotate=lambda x_BTNH, positions_BT, c, window: rotate(x_BTNH, positions_BT, c.rotary, window), check=check_rotary
    ),
    "alibi": PositionKind(bias=alibi),
    "bucket": PositionKind(bias=bucketed, context="free"),
}


def context_of(config: Any) -> Literal["table", "bound", "free"]:
    """Return the meaning of a config's `context`: "free" for networks whose relative attention is built in (XLNet)."""
    return POSITIONS[config.positions].context if hasattr(config, "positions") else "free"
