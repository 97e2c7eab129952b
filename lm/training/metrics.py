"""Sums, never means: every loss and metric is (sum, weight), merged over steps and devices and divided once, at the end."""

import math
from collections.abc import Mapping

import jax
import numpy as np

Sums = Mapping[str, tuple[jax.Array, jax.Array]]  # name -> (weighted sum, sum of weights), on the device
Host = dict[str, tuple[float, ...]]  # the same in float64


def add(total: Host, sums: Sums) -> Host:
    """Fetch sums from the device and add them to the total on the host, in float64."""
    fetched = jax.device_get(dict(sums))
    names = {*total, *fetched}
    # In float64: a float32 count of tokens no longer grows by one beyond 2^24.
    zero = (0.0, 0.0)
    return {
        n: tuple(float(np.float64(a) + np.float64(b)) for a, b in zip(total.get(n, zero), fetched.get(n, zero))) for n in names
    }


def means(total: Host, prefix: str) -> dict[str, float]:
    """Divide sums by weights: `prefix/name`; metrics without weight are left out."""
    return {f"{prefix}/{n}": s / w for n, (s, w) in sorted(total.items()) if w}


def total(values: Mapping[str, float], scales: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Add `prefix/loss`, the scaled sum of the terms' means, where no metric has that name."""
    terms = [scale * values[f"{prefix}/{name}"] for name, scale in scales.items() if f"{prefix}/{name}" in values]
    return {f"{prefix}/loss": sum(terms), **values} if terms else dict(values)


def language(values: Mapping[str, float], name: str | None, prefix: str, tokens_per_byte: float) -> dict[str, float]:
    """Add perplexity and bits per byte, where the metric `name` is nats per token of running text."""
    nll = values.get(f"{prefix}/{name}")
    if nll is None:
        return dict(values)
    # Per byte, so that models with different tokenizers can be compared; exp overflows a double beyond 709.
    bits = nll / math.log(2) * tokens_per_byte
    return {**values, f"{prefix}/perplexity": math.exp(min(nll, 700.0)), f"{prefix}/bits_per_byte": bits}
