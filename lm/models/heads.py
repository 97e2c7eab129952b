"""Vocabulary projection and cross-entropy, in chunks so that no step holds all logits; BERT's pooler."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec

from lm.models.layers import Linear
from lm.models.products import multiply
from lm.sharding import RULES, constrain, constrain_groups, pieces, platform, token_sum


class Head(struct.PyTreeNode):
    """The vocabulary projection: logits = cap(scale * h @ table.T + bias), of which the first `vocab` are real."""

    table_VD: jax.Array
    bias_V: jax.Array | None = None
    vocab: int = struct.field(pytree_node=False, default=0)
    scale: float = struct.field(pytree_node=False, default=1.0)
    cap: float = struct.field(pytree_node=False, default=0.0)

    def logits(self, h: jax.Array) -> jax.Array:
        """Map (..., D) to float32 logits (..., V); those of padded rows are the lowest float."""
        # float32 out of the product itself: rounded to bfloat16, close logits would tie.
        return self.finish(multiply("...d,vd->...v", h, self.table_VD.astype(h.dtype)))

    def finish(self, logits: jax.Array) -> jax.Array:
        """Scale, shift, cap and mask the products of states and table, float32 (..., V)."""
        logits = logits if self.scale == 1 else self.scale * logits
        if self.bias_V is not None:
            logits = logits + self.bias_V.astype(jnp.float32)
        if self.cap:
            logits = self.cap * jnp.tanh(logits / self.cap)
        # Padded rows are there for the mesh: they must take no part in a softmax or an argmax.
        rows = logits.shape[-1]
        return logits if self.vocab >= rows else jnp.where(np.arange(rows) < self.vocab, logits, jnp.finfo(jnp.float32).min)


class Pooler(nn.Module):
    """tanh of a dense layer on the first token: one vector a row (Devlin et al. 2019)."""

    width: int
    std: float = 0.02
    truncate: bool = False

    @nn.compact
    def __call__(self, h_BTD: jax.Array) -> jax.Array:
        dense = Linear((self.width, self.width), ("embed", None), std=self.std, truncate=self.truncate, name="dense")
        return jnp.tanh(dense(h_BTD[:, 0]))


def gather(h_BTD: jax.Array, places_BP: jax.Array) -> jax.Array:
    """Gather the states at P positions of each row: (B, P, D)."""
    return jnp.take_along_axis(h_BTD, places_BP[..., None], 1, mode="clip")


def cross_entropy(
    h_BTD: jax.Array,
    head: Head,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    chunk: int = 0,
) -> dict[str, jax.Array]:
    """Sum the weighted negative log-likelihood (nats), z = log(Z)^2 and hits over all tokens, in float32.

    Return the scalars "total" = nll + z_loss * z, the only one with a gradient, and "nll", "z", "hits". `smoothing` e
    makes "total" (1 - e) * nll + e / V * sum over v of -log p(v) (Szegedy et al. 2016). About `chunk` tokens per device
    go through the vocabulary at once (0: chosen by `chunk_tokens`). The gradient of a chunk is
    computed in the forward pass while its logits are at hand: three matrix products in all where recomputation needs
    four, and nothing of size tokens x vocabulary is kept.
    """
    # A group holds the tokens of one device, so that chunking moves none between devices.
    groups = tuple(n if size % n == 0 else 1 for n, size in zip(pieces("batch", "length"), targets_BT.shape))
    count = targets_BT.size // (groups[0] * groups[1])
    chunk = chunk or chunk_tokens(head.table_VD.shape[0])
    chunks = math.ceil(count / chunk)
    # A number of chunks that divides the tokens spares the padding; smaller chunks, by half at most, are the price.
    chunks = next((n for n in range(chunks, 2 * chunks) if count % n == 0), chunks)
    padding = -count % chunks  # tokens of weight 0, where no number of chunks divides

    def grouped(x: jax.Array) -> jax.Array:  # (B, T, ...) -> (G, chunks, P, ...)
        (rows, columns), (batch, length) = groups, x.shape[:2]
        x = x.reshape(rows, batch // rows, columns, length // columns, *x.shape[2:])
        x = jnp.moveaxis(x, 2, 1).reshape(rows * columns, count, *x.shape[4:])
        if padding:
            x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(rows * columns, chunks, -1, *x.shape[2:])
        return constrain_groups(x)

    tokens = (grouped(h_BTD), grouped(targets_BT), grouped(weights_BT.astype(jnp.float32)))
    total, aux = fused(*tokens, head, (z_loss, smoothing))
    return {"total": total, **{name: jax.lax.stop_gradient(x) for name, x in aux.items()}}


def chunk_tokens(rows: int) -> int:
    """Return the number of tokens whose logits a device holds at once, for a vocabulary of so many rows.

    On a CPU their logits take 16 MiB, as large as its caches. Accelerators have none of that size: every chunk reads and
    writes the float32 gradient of the table, which 1,024 tokens and more make cheap beside their products.
    """
    return max(1, 2**22 // rows) if platform() == "cpu" else max(1024, 2**26 // rows)


def chunk_loss(
    logits_PV: jax.Array, targets_P: jax.Array, weights_P: jax.Array, vocab: int, extras: tuple[float, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss of one chunk of P tokens and its parts; `extras`: z-loss and label smoothing."""
    z_loss, smoothing = extras
    # A sum against the one-hot vector, not a gather: along a sharded or scanned vocabulary the gather is what hurts.
    one_hot = targets_P[:, None] == jnp.arange(logits_PV.shape[1], dtype=targets_P.dtype)
    target_P = jnp.sum(jnp.where(one_hot, logits_PV, 0), -1)
    # The maximum prevents overflow and cancels, so it needs no gradient; a target that equals it is a hit.
    top_P = jax.lax.stop_gradient(logits_PV.max(-1))
    log_z_P = top_P + jnp.log(jnp.exp(logits_PV - top_P[:, None]).sum(-1))
    nll = jnp.sum(weights_P * (log_z_P - target_P))
    z = jnp.sum(weights_P * log_z_P**2)
    hits = jnp.sum(weights_P * (target_P >= top_P))
    total = nll
    if smoothing:
        # Padded logits are the lowest float and would swamp the mean.
        real = np.arange(logits_PV.shape[1]) < vocab
        mean_P = jnp.sum(jnp.where(real, logits_PV, 0), -1) / vocab
        total = (1 - smoothing) * nll + smoothing * jnp.sum(weights_P * (log_z_P - mean_P))
    return (total + z_loss * z if z_loss else total), {"nll": nll, "z": z, "hits": hits}


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused(
    h_GCPD: jax.Array, targets_GCP: jax.Array, weights_GCP: jax.Array, head: Head, extras: tuple[float, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum the losses of all chunks C of all groups G."""

    def step(total: Any, chunk: tuple[jax.Array, ...]) -> tuple[Any, None]:
        h_PD, targets_P, weights_P = chunk
        value = chunk_loss(head.logits(h_PD), targets_P, weights_P, head.vocab, extras)
        return jax.tree.map(jnp.add, total, value), None

    def group(*tokens: jax.Array) -> Any:
        zero = jnp.zeros((), jnp.float32)
        return jax.lax.scan(step, (zero, {"nll": zero, "z": zero, "hits": zero}), tokens)[0]

    return jax.tree.map(lambda x: x.sum(0), jax.vmap(group)(h_GCPD, targets_GCP, weights_GCP))


def fused_forward(
    h_GCPD: jax.Array, targets_GCP: jax.Array, weights_GCP: jax.Array, head: Head, extras: tuple[float, float]
) -> tuple[Any, Any]:
    """Compute loss and gradients chunk by chunk.

    Each group accumulates its own gradient of the table, and the groups are summed once at the end: under a mesh one
    reduction per step, where a shared accumulator would cost one per chunk.
    """
    table_VD = head.table_VD.astype(h_GCPD.dtype)
    if pieces("embed") != (1,):
        # Once a step and in the dtype of the products: XLA would move the gathering of the table into the loop.
        table_VD = jax.lax.optimization_barrier(constrain(table_VD, "vocab", None))
    rest = head.replace(table_VD=None)

    def step(carry: Any, chunk: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        total, d_table, d_rest = carry
        h_PD, targets_P, weights_P = chunk

        def loss(product_PV: jax.Array, head: Head) -> tuple[jax.Array, dict[str, jax.Array]]:
            return chunk_loss(head.finish(product_PV), targets_P, weights_P, head.vocab, extras)

        value, pull, aux = jax.vjp(loss, multiply("pd,vd->pv", h_PD, table_VD), rest, has_aux=True)
        d_product, d_rest_chunk = pull(jnp.ones_like(value))
        d_product = d_product.astype(h_PD.dtype)
        d_table += multiply("pv,pd->vd", d_product, h_PD)
        total, d_rest = jax.tree.map(jnp.add, (total, d_rest), ((value, aux), d_rest_chunk))
        return (total, d_table, d_rest), d_product @ table_VD

    def group(*tokens: jax.Array) -> Any:
        zero = jnp.zeros((), jnp.float32)
        empty = (zero, {"nll": zero, "z": zero, "hits": zero})
        zeros = jnp.zeros(table_VD.shape, jnp.float32), jax.tree.map(jnp.zeros_like, rest)
        return jax.lax.scan(step, (empty, *zeros), tokens)

    (totals, d_table, d_rest), d_h = jax.vmap(group)(h_GCPD, targets_GCP, weights_GCP)
    totals, d_rest = jax.tree.map(lambda x: x.sum(0), (totals, d_rest))
    d_table = table_sum(d_table).astype(head.table_VD.dtype)
    return totals, (d_h, d_rest.replace(table_VD=d_table))


def table_sum(d_GVD: jax.Array) -> jax.Array:
    """Sum the groups' gradients of the table; a group of each device is summed by `token_sum`."""
    if pieces("embed") == (1,) or len(d_GVD) != math.prod(pieces("batch", "length")):
        return constrain(d_GVD.sum(0), "vocab", "embed")
    groups = PartitionSpec((*RULES["batch"], *RULES["length"]), RULES["vocab"], None)
    return token_sum(lambda d_1VD: d_1VD[0], (groups,), ("vocab", "embed"))(d_GVD)


def fused_backward(extras: tuple[float, float], saved: tuple[Any, Any], cotangents: tuple[jax.Array, Any]) -> tuple[Any, ...]:
    """Scale the gradients of the forward pass."""
    d_h, d_head = saved
    scale = cotangents[0]
    return (d_h * scale.astype(d_h.dtype), None, None, jax.tree.map(lambda d: d * scale, d_head))


fused.defvjp(fused_forward, fused_backward)
