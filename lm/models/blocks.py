"""The blocks of attention: running softmax over keys, its gradient, and the arrays that a block is made of.

The softmax runs along the keys while they come by (Milakov & Gimelshein 2018); the gradient recomputes the weights of a block
from the log-sum-exp of its queries (FlashAttention, Dao et al. 2022), so that nothing of size queries x keys is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.models.attend import kept_weights, masked
from lm.models.products import multiply

Tree = Any  # arrays whose length T or S is axis 2, or the last axis of those with fewer


@dataclass(frozen=True)
class Rule:
    """The computation of a block, as functions of indices t (T,) and s (S,) in the row.

    `scores(queries, keys, shared, t, s)`: float32 (B, N, T, S) before the mask. `allowed(marks of queries, marks of keys,
    whole, t, s)`: booleans broadcastable to (B, T, S). `needed(whole, t, s)`: whether any query at t may see a key at s, a
    scalar; None: always. `causal`: half of the blocks are not needed. `rate`: dropout of the weights.
    """

    scores: Callable[..., jax.Array]
    allowed: Callable[..., jax.Array | None]
    needed: Callable[..., jax.Array | None]
    heads: int
    causal: bool = False
    rate: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """Queries and keys of a block, keys of the row (later ones are padding), devices of the ring, and its two pieces."""

    t: int
    s: int
    keys: int
    devices: int
    balanced: bool


@partial(jax.tree_util.register_dataclass, data_fields=["queries", "keys", "whole", "seeds", "t", "s"], meta_fields=[])
@dataclass
class Marks:
    """Arrays without a gradient; `t`, `s`: index in the row of each block's first query and key."""

    queries: Tree
    keys: Tree
    whole: Tree
    seeds: jax.Array | None
    t: jax.Array
    s: jax.Array


def axis_of(x: Tree) -> int:
    return min(x.ndim - 1, 2)


def size(tree: Tree) -> int:
    leaf = jax.tree.leaves(tree)[0]
    return leaf.shape[axis_of(leaf)]


def padded(tree: Tree, more: int) -> Tree:
    def one(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, more if axis == axis_of(x) else 0) for axis in range(x.ndim)])

    return jax.tree.map(one, tree) if more else tree


def split(tree: Tree, count: int) -> Tree:
    """Move `count` blocks of the length to a leading axis, for a scan."""

    def one(x: jax.Array) -> jax.Array:
        axis = axis_of(x)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)

    return jax.tree.map(one, tree)


def join(tree: Tree) -> Tree:
    """Undo `split`."""

    def one(x: jax.Array) -> jax.Array:
        axis = min(x.ndim - 2, 2)
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(one, tree)


# -- one block ---------------------------------------------------------------------------------------------------------


def scored(rule: Rule, sizes: Sizes, marks: tuple[Any, ...], t: jax.Array, s: jax.Array) -> Callable[..., jax.Array]:
    """Return the masked scores of a block as a function of (queries, keys, shared)."""
    query_marks, key_marks, whole = marks
    allowed = rule.allowed(query_marks, key_marks, whole, t, s)
    real = (s < sizes.keys)[None, None]
    allowed = real if allowed is None else allowed & real
    return lambda queries, keys, shared: masked(rule.scores(queries, keys, shared, t, s), allowed)


def indices(sizes: Sizes, t0: jax.Array, s0: jax.Array) -> tuple[jax.Array, jax.Array]:
    return t0 + jnp.arange(sizes.t), s0 + jnp.arange(sizes.s)


def if_needed(rule: Rule, whole: Tree, t: jax.Array, s: jax.Array, work: Callable[[Any], Any], state: Tree) -> Any:
    """Run `work` on a state unless no query at t may see a key at s."""
    needed = rule.needed(whole, t, s)
    return work(state) if needed is None else jax.lax.cond(needed, work, lambda old: old, state)


# -- all blocks of a device --------------------------------------------------------------------------------------------


def absorb(
    rule: Rule, sizes: Sizes, queries: Tree, keys: Tree, values: jax.Array, shared: Tree, marks: Marks, state: Tree
) -> Tree:
    """Add keys to the running (maximum, sum, weighted values) of all queries: (B, N, T, 1), (B, N, T, 1), (B, N, T, H)."""
    blocks = len(marks.t), len(marks.s)
    key_blocks = (*split((keys, values, marks.keys), blocks[1]), marks.s)

    def query_step(_: None, xs: Tree) -> tuple[None, Any]:
        queries, query_marks, t0, state = xs

        def key_step(state: Tree, xs: Tree) -> tuple[Any, None]:
            keys, values, key_marks, s0 = xs
            t, s = indices(sizes, t0, s0)

            def work(state: Tree) -> Any:
                top, total, y = state
                scores = scored(rule, sizes, (query_marks, key_marks, marks.whole), t, s)(queries, keys, shared)
                new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
                weights, old = jnp.exp(scores - new_top), jnp.exp(top - new_top)
                total = total * old + weights.sum(-1, keepdims=True)
                kept = kept_weights(marks.seeds, rule.rate, rule.heads, t, s)
                return new_top, total, y * old + weigh(weights if kept is None else weights * kept, values)

            return if_needed(rule, marks.whole, t, s, work, state), None

        return None, jax.lax.scan(key_step, state, key_blocks)[0]

    xs = (*split((queries, marks.queries), blocks[0]), marks.t, split(state, blocks[0]))
    return join(jax.lax.scan(query_step, None, xs)[1])


def weigh(weights_BNTS: jax.Array, v_BKSH: jax.Array) -> jax.Array:
    """Multiply weights with values of grouped heads: float32 (B, N, T, H)."""
    batch, heads, length, keys = weights_BNTS.shape
    weights = weights_BNTS.astype(v_BKSH.dtype).reshape(batch, v_BKSH.shape[1], -1, keys)
    return multiply("bkts,bksh->bkth", weights, v_BKSH).reshape(batch, heads, length, -1)


def pull_back(
    rule: Rule, sizes: Sizes, queries: Tree, keys: Tree, values: jax.Array, shared: Tree, marks: Marks, result: Tree
) -> Tree:
    """Return float32 gradients of (queries, keys, values, shared) from these keys.

    `result`: log-sum-exp and product of result and gradient, each (B, N, T, 1), and the gradient of the result (B, N, T, H).
    """
    blocks = len(marks.t), len(marks.s)
    key_blocks = (*split((keys, values, marks.keys), blocks[1]), marks.s)
    batch, groups = values.shape[:2]

    def query_step(total: Tree, xs: Tree) -> tuple[Any, Any]:
        queries, query_marks, t0, (log_z, inner, g_BNTH) = xs
        g_BKTH = g_BNTH.astype(values.dtype).reshape(batch, groups, -1, g_BNTH.shape[-1])

        def key_step(carry: Tree, xs: Tree) -> tuple[Any, Any]:
            keys, values, key_marks, s0 = xs
            t, s = indices(sizes, t0, s0)

            def work(carry: Tree) -> Any:
                (d_queries, d_shared), _ = carry
                function = scored(rule, sizes, (query_marks, key_marks, marks.whole), t, s)
                scores, pull = jax.vjp(function, queries, keys, shared)
                weights = jnp.exp(scores - log_z)
                d_weights = multiply("bkth,bksh->bkts", g_BKTH, values).reshape(scores.shape)
                kept = kept_weights(marks.seeds, rule.rate, rule.heads, t, s)
                dropped = weights if kept is None else weights * kept
                d_weights = d_weights if kept is None else d_weights * kept
                d_values = multiply(
                    "bkts,bkth->bksh", dropped.astype(values.dtype).reshape(batch, groups, -1, scores.shape[-1]), g_BKTH
                )
                d_q, d_keys, d_s = pull(weights * (d_weights - inner))
                return (added(d_queries, d_q), added(d_shared, d_s)), floats((d_keys, d_values))

            zeros = zeros_of((keys, values))
            carry, d_keys = if_needed(rule, marks.whole, t, s, work, (carry, zeros))
            return carry, d_keys

        d_keys_total, d_shared = total
        (d_queries, d_shared), d_keys = jax.lax.scan(key_step, (zeros_of(queries), d_shared), key_blocks)
        return (added(d_keys_total, join(d_keys)), d_shared), d_queries

    xs = (*split((queries, marks.queries), blocks[0]), marks.t, split(result, blocks[0]))
    ((d_keys, d_values), d_shared), d_queries = jax.lax.scan(query_step, (zeros_of((keys, values)), zeros_of(shared)), xs)
    return join(d_queries), d_keys, d_values, d_shared


def floats(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def zeros_of(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)


def added(total: Tree, more: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, more)
