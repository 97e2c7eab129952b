"""Vocabulary projection and cross-entropy, fused over chunks of tokens so that no step holds all logits at once."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.sharding import constrain_groups, pieces


class Head(struct.PyTreeNode):
    """The vocabulary projection: logits = cap(scale * h @ table.T), of which the first `vocab` are real."""

    table_VD: jax.Array
    vocab: int = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False, default=1.0)
    cap: float = struct.field(pytree_node=False, default=0.0)

    def logits(self, h: jax.Array) -> jax.Array:
        """Map (..., D) to float32 logits (..., V); those of padded rows are the lowest float."""
        table = self.table_VD.astype(h.dtype)
        product = jax.lax.dot_general(h, table, (((h.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        logits = product if self.scale == 1 else self.scale * product
        if self.cap:
            logits = self.cap * jnp.tanh(logits / self.cap)
        if self.vocab < table.shape[0]:
            logits = jnp.where(np.arange(table.shape[0]) < self.vocab, logits, jnp.finfo(jnp.float32).min)
        return logits


def cross_entropy(
    h_BTD: jax.Array, head: Head, targets_BT: jax.Array, weights_BT: jax.Array, *, z_loss: float = 0.0, chunk: int = 0
) -> dict[str, jax.Array]:
    """Sum the weighted negative log-likelihood (nats), z = log(Z)^2 and hits over all tokens, in float32.

    Returns the scalars "total" = nll + z_loss * z, the only one with a gradient, and "nll", "z", "hits". About `chunk`
    tokens a device go through the vocabulary at once (0: chosen so that their logits take about 16 MiB). The gradient
    of a chunk is taken in the forward pass while its logits are at hand: three matrix products in all where
    recomputation needs four, and nothing of size tokens x vocabulary is kept.
    """
    groups = tuple(n if size % n == 0 else 1 for n, size in zip(pieces("batch", "length"), targets_BT.shape))
    count = targets_BT.size // (groups[0] * groups[1])
    chunk = chunk or max(1, 2**22 // head.table_VD.shape[0])
    chunks = math.ceil(count / chunk)
    chunks = next((n for n in range(chunks, 2 * chunks) if count % n == 0), chunks)
    padding = -count % chunks  # tokens of no weight, where no number of chunks divides the rest

    def grouped(x):
        (rows, columns), (batch, length) = groups, x.shape[:2]
        x = x.reshape(rows, batch // rows, columns, length // columns, *x.shape[2:])
        x = jnp.moveaxis(x, 2, 1).reshape(rows * columns, count, *x.shape[4:])
        if padding:
            x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(rows * columns, chunks, -1, *x.shape[2:])
        return constrain_groups(x)

    tokens = (grouped(h_BTD), grouped(targets_BT), grouped(weights_BT.astype(jnp.float32)))
    total, aux = fused(*tokens, head, z_loss)
    return {"total": total, **{name: jax.lax.stop_gradient(x) for name, x in aux.items()}}


def chunk_loss(h_PD, targets_P, weights_P, head: Head, z_loss: float):
    """Loss of one chunk of P tokens."""
    logits_PV = head.logits(h_PD)
    # A sum against the one-hot vector, not a gather: along a sharded or scanned vocabulary the gather is what hurts.
    one_hot = targets_P[:, None] == jnp.arange(logits_PV.shape[1], dtype=targets_P.dtype)
    target_P = jnp.sum(jnp.where(one_hot, logits_PV, 0), -1)
    top_P = jax.lax.stop_gradient(logits_PV.max(-1))
    log_z_P = top_P + jnp.log(jnp.exp(logits_PV - top_P[:, None]).sum(-1))
    nll = jnp.sum(weights_P * (log_z_P - target_P))
    z = jnp.sum(weights_P * log_z_P**2)
    hits = jnp.sum(weights_P * (target_P >= top_P))
    return (nll + z_loss * z if z_loss else nll), {"nll": nll, "z": z, "hits": hits}


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused(h_GCPD, targets_GCP, weights_GCP, head: Head, z_loss: float):
    """Add the losses of all chunks C of all groups G."""

    def step(total, chunk):
        return jax.tree.map(jnp.add, total, chunk_loss(*chunk, head, z_loss)), None

    def group(*tokens):
        zero = jnp.zeros((), jnp.float32)
        return jax.lax.scan(step, (zero, {"nll": zero, "z": zero, "hits": zero}), tokens)[0]

    return jax.tree.map(lambda x: x.sum(0), jax.vmap(group)(h_GCPD, targets_GCP, weights_GCP))


def fused_forward(h_GCPD, targets_GCP, weights_GCP, head: Head, z_loss: float):
    """Take loss and gradients chunk by chunk.

    Each group adds up its own gradient of the table, and the groups are summed once at the end: under a mesh one
    reduction a step, where a shared accumulator would cost one a chunk.
    """

    def step(carry, chunk):
        total, d_table = carry
        h_PD, targets_P, weights_P = chunk

        def loss(h, table):
            return chunk_loss(h, targets_P, weights_P, head.replace(table_VD=table), z_loss)

        value, pull, aux = jax.vjp(loss, h_PD, head.table_VD, has_aux=True)
        d_h, d_table_chunk = pull(jnp.ones_like(value))
        return (jax.tree.map(jnp.add, total, (value, aux)), d_table + d_table_chunk), d_h

    def group(*tokens):
        zero = jnp.zeros((), jnp.float32)
        empty = ((zero, {"nll": zero, "z": zero, "hits": zero}), jnp.zeros_like(head.table_VD))
        return jax.lax.scan(step, empty, tokens)

    (totals, d_table_GVD), d_h = jax.vmap(group)(h_GCPD, targets_GCP, weights_GCP)
    return jax.tree.map(lambda x: x.sum(0), totals), (d_h, d_table_GVD.sum(0), head)


def fused_backward(z_loss: float, saved, cotangents):
    """Scale the gradients of the forward pass."""
    d_h, d_table, head = saved
    scale = cotangents[0]
    return (d_h * scale.astype(d_h.dtype), None, None, head.replace(table_VD=d_table * scale))


fused.defvjp(fused_forward, fused_backward)
