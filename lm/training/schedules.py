"""Learning-rate schedules: the factor in [0, 1] on the peak rate at every step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.training.settings import Schedule

Scalar = jax.Array | np.number


class Numbers(NamedTuple):
    """Numbers of a run that its compiled step takes as arguments: another seed, rate or schedule compiles nothing anew.

    Scalars: `seed` int32, the others float32. `length` is the number of updates in the last phase of "wsd".
    """

    seed: Scalar
    lr: Scalar
    steps: Scalar
    warmup: Scalar
    final: Scalar
    length: Scalar

    @classmethod
    def of(cls, seed: int, lr: float, schedule: Schedule, steps: int) -> Numbers:
        length = max(round(schedule.decay * steps), 1)
        return cls(np.int32(seed), *map(np.float32, (lr, steps, schedule.warmup, schedule.final, length)))


def factor(shape: str, numbers: Numbers, step: jax.Array) -> jax.Array:
    """Return the factor at update `step`, counted from 0, of `numbers.steps`; float32 ().

    Warm-up rises linearly and reaches the peak at `step == warmup`. "cosine" and "linear" then fall to `final` at
    `step == steps`, one past the last update; "rsqrt" is sqrt(warmup / step) (Vaswani et al. 2017), "flat_rsqrt" the same
    with the peak in place of the warm-up (Raffel et al. 2020); "linear_bert" falls along the line through the peak at step 0,
    so that the rate drops a little at the end of the warm-up (Devlin et al. 2019, released code; Lan et al. 2020); "wsd" stays
    at the peak and falls linearly over the last share `decay` of the steps (Hu et al. 2024).
    """
    t = jnp.asarray(step, jnp.float32)
    _, _, steps, warmup, final, length = numbers
    # t + 1: a first update with rate 0 would be wasted.
    rise = 1.0 if shape == "flat_rsqrt" else jnp.minimum((t + 1) / (warmup + 1), 1.0)
    # Every shape is a function of the step alone, so that a resumed run needs no state of the schedule.
    done = jnp.clip((t - warmup) / jnp.maximum(steps - warmup, 1.0), 0.0, 1.0)
    fall: jax.Array | float
    if shape == "linear":
        fall = final + (1 - final) * (1 - done)
    elif shape == "linear_bert":
        fall = jnp.where(t < warmup, 1.0, final + (1 - final) * jnp.clip(1 - t / steps, 0.0, 1.0))
    elif shape == "cosine":
        fall = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    elif shape in ("rsqrt", "flat_rsqrt"):
        fall = jnp.sqrt(jnp.maximum(warmup, 1.0) / jnp.maximum(t, jnp.maximum(warmup, 1.0)))
    elif shape == "wsd":
        fall = final + (1 - final) * jnp.clip((steps - t) / length, 0.0, 1.0)
    else:
        fall = 1.0
    return jnp.asarray(rise * fall, jnp.float32)
