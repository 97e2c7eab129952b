"""Products of dense layers in 8 bits, with one scale for each row and each column.

"int8": outputs and gradients of inputs are products of 8-bit integers, summed in 32 bits; the gradient of a kernel is a
product in the run's dtype, as its sum over all tokens bears 8 bits worst (SwitchBack; Wortsman et al. 2023, algorithm 1).
"float8": all three products, values and kernels as e4m3, gradients as e5m2 (Micikevicius et al. 2022, section 3).
"""

from functools import partial

import jax
import jax.numpy as jnp

# Formats of values and kernels, and of gradients.
FORMATS = {"int8": (jnp.int8, jnp.int8), "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


def scaled(x: jax.Array, axes: tuple[int, ...], dtype: type) -> tuple[jax.Array, jax.Array]:
    """Return x / scale in 8 bits, and the float32 scale: the largest size along `axes` becomes the largest number."""
    whole = jnp.issubdtype(dtype, jnp.integer)
    limit = float(jnp.iinfo(dtype).max if whole else jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axes, keepdims=True)
    scale = jnp.where(largest == 0, 1, largest / limit)
    y = x / scale
    return (jnp.round(y) if whole else y).astype(dtype), scale


def product(a: jax.Array, b: jax.Array, axes: tuple[tuple[int, ...], tuple[int, ...]], dtypes: tuple[type, type]) -> jax.Array:
    """Contract `axes` of two arrays in 8 bits; the result has the other axes, in float32."""
    (a8, a_scale), (b8, b_scale) = scaled(a, axes[0], dtypes[0]), scaled(b, axes[1], dtypes[1])
    exact = jnp.int32 if jnp.issubdtype(dtypes[0], jnp.integer) else jnp.float32
    y = jax.lax.dot_general(a8, b8, (axes, ((), ())), preferred_element_type=exact).astype(jnp.float32)
    columns = b_scale.size
    return y * a_scale.reshape(*y.shape[: y.ndim - 1], 1) * b_scale.reshape(columns)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def quantized(kind: str, x: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """Return x (..., I) times a matrix, in x's dtype; `kind`: a key of `FORMATS`."""
    values, _ = FORMATS[kind]
    return product(x, kernel_IO, ((x.ndim - 1,), (0,)), (values, values)).astype(x.dtype)


def backward(kind: str, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    (x, kernel_IO), (values, gradients) = saved, FORMATS[kind]
    d_x = product(g, kernel_IO, ((g.ndim - 1,), (1,)), (gradients, values))
    tokens = tuple(range(x.ndim - 1))
    if kind == "int8":
        d_kernel = jax.lax.dot_general(x, g, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32)
    else:
        d_kernel = product(x, g, (tokens, tokens), (values, gradients))
    return d_x.astype(x.dtype), d_kernel.astype(kernel_IO.dtype)


quantized.defvjp(lambda kind, x, kernel: (quantized(kind, x, kernel), (x, kernel)), backward)
