"""The two parameter layers of all networks, their repetition over the depth, and dropout with one key per row.

Axis letters, in suffixes of names (`q_BTNH`) and in einsum equations:

    B  batch (rows)              H  head size                        V  vocabulary
    T  queries, positions        N  heads                            E  embedding, experts
    S  keys, source positions    K  key-value heads                  L  layers
    D  width of the model        G  queries per kv head; gates;      M  memory
    F  feed-forward width           groups of tokens (cross-entropy) R  distances, regions
    A  adapter bottleneck        P  predicted positions              Q  queries of both streams (XLNet)
    W  words                     C  chunks, classes, capacity        Z  directions (XLNet)

A digit is an axis of that size: `segments_2NH`, `slopes_N11`.
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from lm.models.lora import Lora, bound
from lm.sharding import Named, constrain, pieces, rows_cut, spec, token_sum


def named(init: Callable[..., jax.Array], axes: tuple[str | None, ...]) -> Callable[..., jax.Array]:
    """Wrap an initialiser so that its parameter carries the logical names of its axes; `Module.param` unboxes it."""
    return lambda key, shape: Named(init(key, shape, jnp.float32), axes)  # type: ignore[return-value]  # a box around one


def normal(std: float, truncate: bool) -> Callable[..., jax.Array]:
    """Return a normal initialiser; `truncate` redraws values beyond two standard deviations, as TensorFlow's does."""
    return nn.initializers.truncated_normal(std) if truncate else nn.initializers.normal(std)


class Linear(nn.Module):
    """Contract the last `inputs` axes of x with the first `inputs` axes of a kernel of any rank.

    One kernel (D, N, H) serves the query projection with `inputs=1`, one (N, H, D) the output with `inputs=2`: whatever
    treats all weights alike belongs here. Computes in x's dtype; the parameters stay float32. Decoding may pass the
    kernel as "flipped", a matrix (outputs, inputs). Where `lora` matches the matrix's path, low-rank factors are added;
    `keys_B`, one key per row of x, are for their dropout. `quantize`: a key of `lm.models.quantized.FORMATS`, or "none".
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: int = 1
    bias: bool = True
    std: float = 0.02
    truncate: bool = False
    lora: Lora | None = None
    quantize: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        whole, outer, outputs = x, x.shape[: x.ndim - self.inputs], self.shape[self.inputs :]
        size = math.prod(self.shape[: self.inputs])
        x = self.flat(x, size)
        if self.has_variable("params", "flipped"):
            y = jnp.einsum("...i,oi->...o", x, self.get_variable("params", "flipped").astype(x.dtype))
        else:
            kernel = self.param("kernel", named(normal(self.std, self.truncate), self.axes), self.shape)
            y = self.product(x, kernel.astype(x.dtype).reshape(size, -1))
        if self.bias:
            zeros = named(nn.initializers.zeros, self.axes[self.inputs :])
            y = y + self.param("bias", zeros, outputs).astype(x.dtype).reshape(-1)
        # The parameters decide, not the config: the same module runs merged ones, without factors.
        if self.has_variable("params", "lora_a") or (
            self.is_initializing() and self.lora is not None and self.lora.hits(self.path)
        ):
            y = y + self.low_rank(whole, keys_B)
        return checkpoint_name(y.reshape(*outer, *outputs), self.name or "")  # by which `remat` may keep it

    def product(self, x: jax.Array, kernel_IO: jax.Array) -> jax.Array:
        if self.quantize == "none":
            return x @ kernel_IO
        from lm.models.quantized import quantized

        return quantized(self.quantize, x, kernel_IO)

    def flat(self, x: jax.Array, size: int) -> jax.Array:
        """Merge the contracted axes, and the others too where the mesh cuts no row.

        On a CPU one product of two matrices is faster than the same product over more axes; rows and columns that are
        both cut cannot be merged without gathering them on every device.
        """
        return x.reshape(*x.shape[: x.ndim - self.inputs], size) if rows_cut() else x.reshape(-1, size)

    def low_rank(self, x: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        """Return scale (x A) B, `flat`: A has the kernel's input axes, B its output axes, each beside the rank's."""
        rank, inputs = self.lora.rank, self.shape[: self.inputs]
        size = math.prod(inputs)
        a = self.param("lora_a", named(bound(size), (*self.axes[: self.inputs], "rank")), (*inputs, rank))
        zeros = named(nn.initializers.zeros, ("rank", *self.axes[self.inputs :]))
        b = self.param("lora_b", zeros, (rank, *self.shape[self.inputs :]))
        site = zlib.crc32((self.name or "").encode()) % 2**31  # matrices of one layer drop out independently
        x = self.flat(dropout(x, self.lora.dropout, keys_B, site), size)
        # In this order: A B would be as large as the kernel.
        return (x @ a.astype(x.dtype).reshape(size, rank)) @ b.astype(x.dtype).reshape(rank, -1) * self.lora.scale


class Embed(nn.Module):
    """An embedding table (rows, width); `axis`: logical name of its rows."""

    rows: int
    width: int
    axis: str | None = "vocab"
    std: float = 0.02
    truncate: bool = False

    def setup(self) -> None:
        init = named(normal(self.std, self.truncate), (self.axis, "embed"))
        self.table = self.param("table", init, (self.rows, self.width))

    def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return look_up(self.table, ids, jnp.dtype(dtype), (self.axis, "embed"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def look_up(table: jax.Array, ids: jax.Array, dtype: jnp.dtype, axes: tuple[str | None, str]) -> jax.Array:
    """Return rows of a table in another dtype; its gradient is summed in float32."""
    # Gathered on every device, as a look-up in a sharded table makes XLA rematerialise it in full; in the smaller dtype.
    whole = constrain(table.astype(dtype), None, None)
    # "clip", as the default mode compares every id and fills in NaN.
    return jnp.take(whole, ids, axis=0, mode="clip")


def look_up_backward(dtype: jnp.dtype, axes: tuple[str | None, str], saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple:
    table, ids = saved

    def local(ids: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.zeros(table.shape, table.dtype).at[ids].add(g.astype(table.dtype), mode="clip")

    if pieces("embed") == (1,) or any(size % n for size, n in zip(ids.shape, pieces("batch", "length"))):
        return local(ids, g), None
    tokens = spec(("batch", "length")[: ids.ndim])
    return token_sum(local, (tokens, PartitionSpec(*tokens, None)), axes)(ids, g), None


look_up.defvjp(lambda table, ids, *rest: (look_up(table, ids, *rest), (table, ids)), look_up_backward)


def repeat(
    layer: type[nn.Module],
    config: Any,
    *,
    in_axes: Any = (0, nn.broadcast),
    out_axes: int = 0,
    share: bool = False,
    remat: str = "none",
    unroll: int = 0,
) -> Callable[..., nn.Module]:
    """Scan a layer over `config.depth` sets of parameters, stacked on a leading axis L; `share`: one set for all.

    Return the constructor of the module, called with the config (and a name). `remat`: "dots" recomputes all but
    matrix products in the backward pass, "full" everything but the outputs of the dense layers named in `config.keep`; with
    `config.offload`, what is kept waits in the host's memory. `unroll` 0: all layers.
    """
    if remat != "none":
        from lm.models.recomputation import kept

        # Within a scan, forward and backward pass share no expressions that a barrier would have to keep apart.
        layer = nn.remat(layer, prevent_cse=False, policy=kept(remat, config.keep, config.offload))

    def scan(length: int) -> type[nn.Module]:
        return nn.scan(
            layer,
            variable_axes={"intermediates": 0} if share else {"params": 0, "intermediates": 0},
            variable_broadcast="params" if share else False,
            split_rngs={"params": not share},
            in_axes=in_axes,
            out_axes=out_axes,
            length=length,
            unroll=unroll or length,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

    if pieces("layers") == (1,):
        return scan(config.depth)
    from lm.models.pipeline import piped

    return piped(scan, config, in_axes, out_axes, share)


def fold(keys_B: jax.Array | None, site: int | jax.Array) -> jax.Array | None:
    """Fold a number into every row's key; None stays None."""
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, site)


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None, site: int) -> jax.Array:
    """Zero entries of x (leading axis B) with probability `rate` and scale the rest; without keys return x.

    One key a row, so that the mask of a row depends neither on micro-batches nor on the mesh. `site` distinguishes the
    uses within a layer. Sixteen random bits an entry: the rate is exact to 2**-17. They are halves of 32-bit words,
    split here: `jax.random.bits` hashes once for every entry, however few bits are requested.
    """
    if keys_B is None or rate == 0:
        return x

    def mask(key: jax.Array) -> jax.Array:
        *lead, last = x.shape[1:]
        words = jax.random.bits(jax.random.fold_in(key, site), (*lead, -(-last // 2)), jnp.uint32)
        # Side by side, so that an axis which is cut over devices stays cut.
        bits = jnp.stack([words & 0xFFFF, words >> 16], -1).reshape(*lead, -1)[..., :last]
        return bits >= round(rate * 2**16)

    return jnp.where(jax.vmap(mask)(keys_B), x / (1 - rate), 0).astype(x.dtype)
