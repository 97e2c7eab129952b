"""Adaptive embedding and softmax: frequent tokens have wide vectors in a short list, rare ones are in tail clusters.

Grave et al. 2017 (softmax), Baevski & Auli 2019 (inputs), in the form of Dai et al. 2019 (Transformer-XL). Tokens are
numbered by falling frequency; `cutoffs` are the first ids of the tail clusters.

    log p(w) = log p_head(w)                                  for the short list, w < cutoffs[0]
    log p(w) = log p_head(cluster of w) + log p_tail(w)       otherwise
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lm.models.heads import Head, cross_entropy
from lm.models.layers import named
from lm.sharding import constrain, constrain_groups, pieces

Order = Literal["rising", "falling"]


class Cluster(struct.PyTreeNode):
    """One softmax: a projection of the hidden state (None: identity) and a table of output embeddings."""

    head: Head
    project_DE: jax.Array | None = None

    def reduced(self, h: jax.Array) -> jax.Array:
        return h if self.project_DE is None else h @ self.project_DE.astype(h.dtype)

    def logits(self, h: jax.Array) -> jax.Array:
        return self.head.logits(self.reduced(h))


class AdaptiveHead(struct.PyTreeNode):
    """The vocabulary as clusters; `clusters[0]` has the short list, then one entry for each tail.

    `order` "rising": entry cutoffs[0] + i of the head stands for tail i (TensorFlow release, Hugging Face); "falling": the
    last entry stands for the first tail (PyTorch release). Weights of one order are wrong in the other.
    """

    clusters: tuple[Cluster, ...]
    ends: tuple[int, ...] = struct.field(pytree_node=False)  # past the last id of each cluster
    order: Order = struct.field(pytree_node=False, default="rising")

    def column(self, tail: int) -> int:
        """Return the entry of the head that stands for a tail, counted from 1."""
        tails = len(self.ends) - 1
        return self.ends[0] + (tail - 1 if self.order == "rising" else tails - tail)

    def logits(self, h: jax.Array) -> jax.Array:
        """Map (..., D) to all log-probabilities (..., V), float32; computes every cluster, so for few tokens only."""
        head = jax.nn.log_softmax(self.clusters[0].logits(h), -1)
        parts = [head[..., : self.ends[0]]]
        for tail, cluster in enumerate(self.clusters[1:], 1):
            column = self.column(tail)
            parts.append(head[..., column : column + 1] + jax.nn.log_softmax(cluster.logits(h), -1))
        return jnp.concatenate(parts, -1)


class Adaptive(nn.Module):
    """Parameters of embedding and softmax: tables are shared by both, projections where `tied`.

    `divide` = 1: one table of width `embed`, sliced by the cutoffs. `divide` > 1: cluster i has a table of width
    embed // divide**i, always with a projection. `rows_multiple`: each table has a multiple of so many rows.
    """

    vocab: int
    width: int
    embed: int
    cutoffs: tuple[int, ...] = ()
    divide: int = 1
    tied: tuple[bool, ...] = (False,)
    order: Order = "rising"
    rows_multiple: int = 1
    std: float = 0.02
    project_std: float = 0.01

    def setup(self) -> None:
        # With divide = 1 all clusters are slices of one table, as wide as the head's.
        ends = (*self.cutoffs, self.vocab)
        sizes = ends if self.divide == 1 else np.diff(ends, prepend=0)
        kept = len(ends) if self.divide > 1 else 1
        widths = [self.embed // self.divide**i for i in range(len(ends))]
        # Of several tables i - kept is that cluster's size, of a single one the last end, the whole vocabulary.
        self.tables = [self.table(f"table{i}", int(sizes[i - kept]), widths[i]) for i in range(kept)]
        projected = self.divide > 1 or self.embed != self.width
        self.inputs = [self.project(f"input{i}", widths[i]) for i in range(kept)] if projected else [None] * kept
        outputs = []  # a tied output projection is the input's
        for i, width in enumerate(widths):
            own = projected and not self.tied[i]
            outputs.append(self.project(f"output{i}", width) if own else self.inputs[min(i, kept - 1)])
        self.outputs = outputs
        zeros = named(nn.initializers.zeros, (None,))
        self.biases = [self.param(f"bias{i}", zeros, (int(sizes[i - kept]),)) for i in range(kept)]
        if self.cutoffs:
            normal, tails = nn.initializers.normal(self.std), len(self.cutoffs)
            self.cluster_table = self.param("cluster_table", named(normal, (None, "embed")), (tails, self.embed))
            self.cluster_bias = self.param("cluster_bias", zeros, (tails,))

    def table(self, name: str, rows: int, width: int) -> jax.Array:
        shape = (-(-rows // self.rows_multiple) * self.rows_multiple, width)
        return self.param(name, named(nn.initializers.normal(self.std), ("vocab", "embed")), shape)

    def project(self, name: str, width: int) -> jax.Array:
        return self.param(name, named(nn.initializers.normal(self.project_std), ("embed", None)), (self.width, width))

    def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Embed tokens: (..., D). Every token is looked up in every cluster, and rows of other clusters are zeroed.

        That costs width x (sum of the clusters' widths) products per token, less than a hundredth of a step, and keeps
        all shapes fixed.
        """
        starts = (0, *self.cutoffs)
        total = jnp.zeros((), dtype)
        for i, (table, project) in enumerate(zip(self.tables, self.inputs)):
            x = jnp.take(constrain(table, None, None), ids - starts[i], axis=0, mode="clip").astype(dtype)
            if len(self.tables) > 1:
                inside = (ids >= starts[i]) & (ids < (*self.cutoffs, self.vocab)[i])
                x = jnp.where(inside[..., None], x, 0)
            total = total + (x if project is None else x @ project.T.astype(dtype))
        return total

    def head(self) -> AdaptiveHead:
        """Return the softmax over the same tables."""
        ends = (*self.cutoffs, self.vocab)
        clusters = []
        for i, (start, end) in enumerate(zip((0, *self.cutoffs), ends)):
            whole = len(self.tables) > 1
            # Rows that fill a table up to a multiple are no classes: they are cut off here.
            table = self.tables[i][: end - start] if whole else self.tables[0][start:end]
            bias = self.biases[i] if whole else self.biases[0][start:end]
            if i == 0 and self.cutoffs:
                table = jnp.concatenate([table, self.cluster_table])
                bias = jnp.concatenate([bias, self.cluster_bias])
            clusters.append(Cluster(Head(table, bias, vocab=table.shape[0]), self.outputs[i]))
        return AdaptiveHead(tuple(clusters), ends, self.order)


def adaptive_cross_entropy(
    h_BTD: jax.Array, head: AdaptiveHead, targets_BT: jax.Array, weights_BT: jax.Array, *, chunk: int = 0
) -> dict[str, jax.Array]:
    """Sum the exact weighted negative log-likelihood (nats) over all tokens: "total", with the gradient, "nll" and "hits".

    A cluster is computed for its own tokens only: they are sorted to the front, and a loop over chunks of `chunk` tokens
    (0: chosen) ends after them. Shapes are fixed, the number of chunks is not: a tail costs its tokens rounded up to a
    chunk, on several devices those of the device with most. A hit: the target is the most likely token of its cluster,
    and its cluster the most likely entry of the head.
    """
    if len(head.clusters) == 1:
        (cluster,) = head.clusters
        return cross_entropy(cluster.reduced(h_BTD), cluster.head, targets_BT, weights_BT, chunk=chunk)
    groups = tuple(n if size % n == 0 else 1 for n, size in zip(pieces("batch", "length"), targets_BT.shape))

    def grouped(x: jax.Array) -> jax.Array:  # (B, T, ...) -> (G, P, ...): the tokens of one device
        (rows, columns), (batch, length) = groups, x.shape[:2]
        x = x.reshape(rows, batch // rows, columns, length // columns, *x.shape[2:])
        return constrain_groups(jnp.moveaxis(x, 2, 1).reshape(rows * columns, -1, *x.shape[4:]))

    h, targets, weights = grouped(h_BTD), grouped(targets_BT), grouped(weights_BT.astype(jnp.float32))
    # The head predicts the token itself or the entry of its tail; each tail then its own tokens.
    number = jnp.searchsorted(jnp.asarray(head.ends[:-1]), targets, side="right")
    columns = jnp.asarray([0, *(head.column(i) for i in range(1, len(head.ends)))], jnp.int32)
    total, right = few(h, jnp.where(number == 0, targets, columns[number]), weights, head.clusters[0], chunk)
    for i, cluster in enumerate(head.clusters[1:], 1):
        inside = number == i
        nll, right_tail = few(h, targets - head.ends[i - 1], jnp.where(inside, weights, 0), cluster, chunk)
        total, right = total + nll, jnp.where(inside, right * right_tail, right)
    hits = jnp.sum(weights * right)
    return {"total": total, "nll": jax.lax.stop_gradient(total), "hits": jax.lax.stop_gradient(hits)}


def chunk_loss(h_PD: jax.Array, targets_P: jax.Array, weights_P: jax.Array, cluster: Cluster) -> tuple[jax.Array, jax.Array]:
    """Return the loss of P tokens, and 1 for each whose target is the most likely."""
    logits_PV = cluster.logits(h_PD)
    # A sum against the one-hot vector, as in `lm.models.heads`: a gather is slow along a sharded vocabulary.
    one_hot = targets_P[:, None] == jnp.arange(logits_PV.shape[1], dtype=targets_P.dtype)
    target_P = jnp.sum(jnp.where(one_hot, logits_PV, 0), -1)
    top_P = jax.lax.stop_gradient(logits_PV.max(-1))
    log_z_P = top_P + jnp.log(jnp.exp(logits_PV - top_P[:, None]).sum(-1))
    return jnp.sum(weights_P * (log_z_P - target_P)), (target_P >= top_P).astype(jnp.float32)


def over_chunks(
    h_GPD: jax.Array,
    targets_GP: jax.Array,
    weights_GP: jax.Array,
    cluster: Cluster,
    chunk: int,
    start: Any,
    step: Callable[[Any, jax.Array, tuple[jax.Array, ...]], Any],
) -> Any:
    """Fold `step(carry, rows_GC, part)` over the weighted tokens, `chunk` of each group at once.

    `rows_GC`: indices of the tokens within the group; indices past the last pad a chunk with tokens of weight 0. The
    number of rounds is dynamic: that of the group with most tokens.
    """
    # A stable sort puts the weighted tokens first and keeps their order, so that sums are reproducible.
    count = targets_GP.shape[1]
    order_GP = jnp.argsort(weights_GP == 0, axis=1, stable=True)
    order_GP = jnp.pad(order_GP, ((0, 0), (0, -count % chunk)), constant_values=count)
    most = jnp.max((weights_GP != 0).sum(1))

    def body(i: jax.Array, carry: Any) -> Any:
        rows_GC = jax.lax.dynamic_slice_in_dim(order_GP, i * chunk, chunk, 1)
        pick = jax.vmap(lambda x, rows: x.at[rows].get(mode="fill", fill_value=0))
        return step(carry, rows_GC, tuple(pick(x, rows_GC) for x in (h_GPD, targets_GP, weights_GP)))

    return jax.lax.fori_loop(0, -(-most // chunk), body, start)


def put(x_GP: jax.Array, rows_GC: jax.Array, y_GC: jax.Array) -> jax.Array:
    """Scatter the values of a chunk into the array of all tokens; indices past the end are dropped."""
    return jax.vmap(lambda x, rows, y: x.at[rows].set(y, mode="drop", unique_indices=False))(x_GP, rows_GC, y_GC)


def few(
    h_GPD: jax.Array, targets_GP: jax.Array, weights_GP: jax.Array, cluster: Cluster, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Return the loss of one cluster on the tokens of weight, and (G, P): 1 where the target is the most likely."""
    count, rows = targets_GP.shape[1], cluster.head.table_VD.shape[0]
    # Below some hundred rows a product is bound by reading the table; above 16 MiB of logits there is nothing to gain.
    chunk = min(chunk or max(256, 2**22 // rows), count)
    return fused(h_GPD, targets_GP, weights_GP, cluster, chunk)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused(
    h_GPD: jax.Array, targets_GP: jax.Array, weights_GP: jax.Array, cluster: Cluster, chunk: int
) -> tuple[jax.Array, jax.Array]:
    def step(carry: Any, rows_GC: jax.Array, part: tuple[jax.Array, ...]) -> Any:
        nll_G, right_GP = carry
        nll, right = jax.vmap(lambda h, targets, weights: chunk_loss(h, targets, weights, cluster))(*part)
        return nll_G + nll, put(right_GP, rows_GC, right)

    start = jnp.zeros(h_GPD.shape[0], jnp.float32), jnp.zeros(targets_GP.shape, jnp.float32)
    nll_G, right_GP = over_chunks(h_GPD, targets_GP, weights_GP, cluster, chunk, start, step)
    return nll_G.sum(), right_GP


def fused_forward(
    h_GPD: jax.Array, targets_GP: jax.Array, weights_GP: jax.Array, cluster: Cluster, chunk: int
) -> tuple[Any, Any]:
    """Compute the gradients of a chunk while its logits are at hand: a loop of dynamic length has no reverse mode.

    Groups accumulate their gradients of the table separately; one sum at the end is one reduction over the mesh.
    """

    def one(h_PD: jax.Array, targets_P: jax.Array, weights_P: jax.Array) -> tuple[Any, ...]:
        nll, pull, right = jax.vjp(lambda h, c: chunk_loss(h, targets_P, weights_P, c), h_PD, cluster, has_aux=True)
        return nll, right, *pull(jnp.ones_like(nll))

    def step(carry: Any, rows_GC: jax.Array, part: tuple[jax.Array, ...]) -> Any:
        nll_G, right_GP, d_h, d_cluster = carry
        nll, right, d_h_chunk, d_cluster_chunk = jax.vmap(one)(*part)
        d_cluster = jax.tree.map(jnp.add, d_cluster, d_cluster_chunk)
        return nll_G + nll, put(right_GP, rows_GC, right), put(d_h, rows_GC, d_h_chunk), d_cluster

    groups = h_GPD.shape[0]
    start = (
        jnp.zeros(groups, jnp.float32),
        jnp.zeros(targets_GP.shape, jnp.float32),
        jnp.zeros_like(h_GPD),
        jax.tree.map(lambda x: jnp.zeros((groups, *x.shape), x.dtype), cluster),
    )
    nll_G, right_GP, d_h, d_cluster = over_chunks(h_GPD, targets_GP, weights_GP, cluster, chunk, start, step)
    return (nll_G.sum(), right_GP), (d_h, jax.tree.map(lambda x: x.sum(0), d_cluster))


def fused_backward(chunk: int, saved: tuple[Any, Any], cotangents: tuple[jax.Array, Any]) -> tuple[Any, ...]:
    """Scale the gradients of the forward pass."""
    # The cotangent of the hits is ignored: they are figures, without a gradient.
    d_h, d_cluster = saved
    scale = cotangents[0]
    return d_h * scale.astype(d_h.dtype), None, None, jax.tree.map(lambda d: d * scale, d_cluster)


fused.defvjp(fused_forward, fused_backward)
