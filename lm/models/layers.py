"""The two parameter layers everything is built from, and dropout with one key a row."""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.models.lora import Lora, bound
from lm.sharding import Named, constrain


def named(init: Callable, axes: tuple[str | None, ...]) -> Callable:
    """Wrap an initialiser so that its parameter carries the logical names of its axes."""
    return lambda key, shape: Named(init(key, shape, jnp.float32), axes)


def normal(std: float, truncate: bool) -> Callable:
    """Normal initialiser; `truncate` redraws what lies beyond two deviations, as TensorFlow's does."""
    return nn.initializers.truncated_normal(std) if truncate else nn.initializers.normal(std)


class Linear(nn.Module):
    """Contract the last `inputs` axes of x with the first `inputs` axes of a kernel of any rank.

    One kernel (D, N, H) serves the query projection with `inputs=1` and one (N, H, D) the output with `inputs=2`: the
    place for whatever treats all weights alike. Computes in x's dtype; the parameters stay float32. Decoding may give
    the kernel as "flipped", a matrix (outputs, inputs). Where `lora` names the matrix, low-rank factors stand beside it;
    `keys_B`, one key a row of x, are for their dropout.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: int = 1
    bias: bool = True
    std: float = 0.02
    truncate: bool = False
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        whole, outer, outputs = x, x.shape[: x.ndim - self.inputs], self.shape[self.inputs :]
        # Two plain matrices: on a CPU one large product is faster than the same product over more axes.
        size = math.prod(self.shape[: self.inputs])
        x = x.reshape(-1, size)
        if self.has_variable("params", "flipped"):
            y = jnp.einsum("ri,oi->ro", x, self.get_variable("params", "flipped").astype(x.dtype))
        else:
            kernel = self.param("kernel", named(normal(self.std, self.truncate), self.axes), self.shape)
            y = x @ kernel.astype(x.dtype).reshape(size, -1)
        if self.bias:
            zeros = named(nn.initializers.zeros, self.axes[self.inputs :])
            y = y + self.param("bias", zeros, outputs).astype(x.dtype).reshape(-1)
        if self.has_variable("params", "lora_a") or (
            self.is_initializing() and self.lora is not None and self.lora.hits(self.path)
        ):
            y = y + self.low_rank(whole, keys_B)
        return y.reshape(*outer, *outputs)

    def low_rank(self, x: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        """Add scale (x A) B, (rows, outputs): A has the kernel's inputs, B its outputs, each beside an axis of the rank."""
        rank, inputs = self.lora.rank, self.shape[: self.inputs]
        size = math.prod(inputs)
        a = self.param("lora_a", named(bound(size), (*self.axes[: self.inputs], "rank")), (*inputs, rank))
        zeros = named(nn.initializers.zeros, ("rank", *self.axes[self.inputs :]))
        b = self.param("lora_b", zeros, (rank, *self.shape[self.inputs :]))
        site = zlib.crc32((self.name or "").encode()) % 2**31  # every matrix of a layer drops out by itself
        x = dropout(x, self.lora.dropout, keys_B, site).reshape(-1, size)
        return (x @ a.astype(x.dtype).reshape(size, rank)) @ b.astype(x.dtype).reshape(rank, -1) * self.lora.scale


class Embed(nn.Module):
    """Look rows of a table up."""

    rows: int
    width: int
    axis: str | None = "vocab"
    std: float = 0.02
    truncate: bool = False

    def setup(self):
        init = named(normal(self.std, self.truncate), (self.axis, "embed"))
        self.table = self.param("table", init, (self.rows, self.width))

    def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return jnp.take(self.whole(), ids, axis=0, mode="clip").astype(dtype)

    def whole(self) -> jax.Array:
        """Gather the table on every device: a look-up in a sharded one makes XLA rematerialise it in full."""
        return constrain(self.table, None, None)


def fold(keys_B: jax.Array | None, site: int) -> jax.Array | None:
    """Derive other keys, one a row; no keys stay none."""
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, site)


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None, site: int) -> jax.Array:
    """Zero entries of x (leading axis B) with probability `rate` and scale the rest; no keys: no dropout.

    One key a row, so that the mask of a row depends neither on micro-batches nor on the mesh. `site` tells the uses
    within a layer apart. Sixteen random bits an entry: the rate is met to 2**-17. They are halves of words of 32, cut
    here: `jax.random.bits` hashes once for every entry, however few bits are asked for.
    """
    if keys_B is None or rate == 0:
        return x

    def mask(key):
        *lead, last = x.shape[1:]
        words = jax.random.bits(jax.random.fold_in(key, site), (*lead, -(-last // 2)), jnp.uint32)
        bits = jnp.concatenate([words & 0xFFFF, words >> 16], -1)[..., :last]
        return bits >= round(rate * 2**16)

    return jnp.where(jax.vmap(mask)(keys_B), x / (1 - rate), 0).astype(x.dtype)
