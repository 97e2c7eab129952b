"""Attention in blocks of queries and keys with memory linear in the context, on one device or around a ring of devices.

Blocks that no query may see are skipped. Where the mesh cuts rows over its `context` axis, each device keeps its queries and
the keys go around in a ring (Liu et al. 2023). Under a causal mask a device then holds an early and a late piece of each row,
so that all have the same work. The scores are a function of the caller: plain, biased and two-stream attention share this.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lm.models.attend import AXIS, Call, attention_scores, ring_size, seeds, visible
from lm.models.blocks import Marks, Rule, Sizes, Tree, absorb, added, axis_of, padded, pull_back, size, zeros_of
from lm.sharding import constrain

BLOCK = 512  # most queries and keys of a block


@dataclass(frozen=True)
class Operands:
    """The arrays of a call: differentiable `queries`, `keys`, `values` (B, K, S, H), `shared`; marks of queries and keys.

    `whole`: other arrays without a gradient, the same for all blocks; `seeds_B2`: two words a row for dropout.
    """

    queries: Tree
    keys: Tree
    values: jax.Array
    shared: Tree = ()
    query_marks: Tree = ()
    key_marks: Tree = ()
    whole: Tree = ()
    seeds_B2: jax.Array | None = None


def blockwise(rule: Rule, given: Operands) -> jax.Array:
    """Return softmax(scores) times values, (B, N, T, H) of the values' dtype; a query without a key gets any number."""
    length, keys = size(given.queries), size(given.keys)
    devices = ring_size()
    ring = devices > 1 and length % devices == 0 and keys % devices == 0
    parts = devices if ring else 1
    # Two pieces a device, an early and a late one, need two blocks or an even number of them.
    balanced = ring and rule.causal and length == keys and (length // parts) % 2 == 0
    t_block, s_block = (block_size(n // parts // (2 if balanced else 1), BLOCK, exact=ring) for n in (length, keys))
    padding = -length % t_block, -keys % s_block  # 0 in a ring
    queries, query_marks = (padded(tree, padding[0]) for tree in (given.queries, given.query_marks))
    key_side = tuple(padded(tree, padding[1]) for tree in (given.keys, given.values, given.key_marks))
    starts = np.arange(0, length + padding[0], t_block), np.arange(0, keys + padding[1], s_block)
    sizes = Sizes(t_block, s_block, keys, parts, balanced)

    def run(queries: Tree, query_marks: Tree, starts_T: Tree, key_side: Tree, starts_S: Tree, rest: Tree) -> jax.Array:
        shared, whole, seeds = rest
        keys, values, key_marks = key_side
        marks = Marks(query_marks, key_marks, whole, seeds, jnp.asarray(starts_T), jnp.asarray(starts_S))
        return attend_blocks(rule, sizes, queries, keys, values, shared, marks)

    rest = given.shared, given.whole, given.seeds_B2
    arguments = (queries, query_marks, starts[0], key_side, starts[1], rest)
    if not ring:
        return run(*arguments)[:, :, :length]
    # Manual along the ring alone: rows and heads stay with the compiler.
    lengths = [jax.tree.map(along, tree) for tree in arguments[:-1]]
    out = PartitionSpec(None, None, AXIS)
    everywhere = jax.tree.map(lambda _: PartitionSpec(), rest)
    mapped = jax.shard_map(run, in_specs=(*lengths, everywhere), out_specs=out, axis_names={AXIS}, check_vma=False)
    return mapped(*arguments)


def along(x: Tree) -> PartitionSpec:
    """Cut the length of an array over the ring; the list of starts has no other axis."""
    return PartitionSpec(*[None] * axis_of(x), AXIS)


def block_size(length: int, most: int, exact: bool) -> int:
    """Return the largest divisor of a length up to `most`; or `most`, unless `exact`, where padding the row is cheaper."""
    most = min(length, most)
    best = max(n for n in range(1, most + 1) if length % n == 0)
    return best if exact or 2 * best >= most else most


# -- the ring ----------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_blocks(
    rule: Rule, sizes: Sizes, queries: Tree, keys: Tree, values: jax.Array, shared: Tree, marks: Marks
) -> jax.Array:
    return forward(rule, sizes, queries, keys, values, shared, marks)[0]


def forward(
    rule: Rule, sizes: Sizes, queries: Tree, keys: Tree, values: jax.Array, shared: Tree, marks: Marks
) -> tuple[jax.Array, Any]:
    cut = (queries, keys, values, marks.queries, marks.keys, marks.t, marks.s)
    queries, keys, values, query_marks, key_marks, t, s = moved(sizes, cut)
    marks = Marks(query_marks, key_marks, marks.whole, marks.seeds, t, s)
    lead = values.shape[0], rule.heads, len(marks.t) * sizes.t
    empty = jnp.full((*lead, 1), -jnp.inf), jnp.zeros((*lead, 1)), jnp.zeros((*lead, values.shape[-1]))
    state = tuple(constrain(x, "batch", "heads", None, None) for x in empty)

    def step(state: Tree, around: Tree) -> Any:
        keys, values, key_marks, starts = around
        here = Marks(marks.queries, key_marks, marks.whole, marks.seeds, marks.t, starts)
        return absorb(rule, sizes, queries, keys, values, shared, here, state), around

    (top, total, y), _ = circle(sizes, step, state, (keys, values, marks.keys, marks.s))
    # A query whose blocks were all skipped has the sum 0.
    total = jnp.where(total > 0, total, 1)
    y, log_z = (y / total).astype(values.dtype), jnp.where(top > -jnp.inf, top + jnp.log(total), 0)
    return moved(sizes, y, back=True), (queries, keys, values, shared, marks, y, log_z)


def backward(rule: Rule, sizes: Sizes, saved: Tree, g_BNTH: jax.Array) -> tuple[Any, ...]:
    queries, keys, values, shared, marks, y, log_z = saved
    g_BNTH = moved(sizes, g_BNTH).astype(jnp.float32)
    result = log_z, (g_BNTH * y.astype(jnp.float32)).sum(-1, keepdims=True), g_BNTH

    def step(state: Tree, around: Tree) -> Any:
        keys, values, key_marks, starts, (d_keys, d_values) = around
        here = Marks(marks.queries, key_marks, marks.whole, marks.seeds, marks.t, starts)
        d_q, d_k, d_v, d_s = pull_back(rule, sizes, queries, keys, values, shared, here, result)
        state = added(state[0], d_q), added(state[1], d_s)
        return state, (keys, values, key_marks, starts, (added(d_keys, d_k), added(d_values, d_v)))

    around = (keys, values, marks.keys, marks.s, (zeros_of(keys), zeros_of(values)))
    (d_queries, d_shared), around = circle(sizes, step, (zeros_of(queries), zeros_of(shared)), around, home=True)
    d_keys, d_values = around[-1]
    found = moved(sizes, (d_queries, d_keys, d_values), back=True)
    alike = jax.tree.map(lambda d, x: d.astype(x.dtype), (*found, d_shared), (queries, keys, values, shared))
    return (*alike, None)


attend_blocks.defvjp(forward, backward)


def circle(sizes: Sizes, step: Callable[[Any, Any], Any], state: Tree, around: Tree, home: bool = False) -> tuple[Any, Any]:
    """Call `step(state, around)` on every device's part of `around`; `home`: hand the parts on until they are back."""
    if sizes.devices == 1:
        return step(state, around)
    pairs = [(i, (i + 1) % sizes.devices) for i in range(sizes.devices)]

    def turn(carry: Tree, _: None) -> tuple[Any, None]:
        state, around = step(*carry)
        return (state, jax.lax.ppermute(around, AXIS, pairs)), None

    carry, _ = jax.lax.scan(turn, (state, around), None, sizes.devices - (not home))
    return carry if home else step(*carry)


def moved(sizes: Sizes, tree: Tree, back: bool = False) -> Tree:
    """Exchange pieces so that each device holds one early and one late piece of every row; `back`: undo it."""
    if not sizes.balanced:
        return tree
    pieces = 2 * sizes.devices

    def one(x: jax.Array) -> jax.Array:
        halves = jnp.split(x, 2, axis_of(x))
        for half in range(2):
            # Pieces h and 2n - 1 - h belong together.
            pairs = [(i, min(h, pieces - 1 - h)) for i in range(sizes.devices) for h in (2 * i + half,)]
            pairs = [(b, a) for a, b in pairs] if back else pairs
            halves[half] = jax.lax.ppermute(halves[half], AXIS, pairs)
        return jnp.concatenate(halves, axis_of(x))

    return jax.tree.map(one, tree)


# -- attention of a Transformer ----------------------------------------------------------------------------------------


def run_blockwise(call: Call) -> jax.Array:
    """Attend in blocks."""
    mask, causal = call.mask, call.mask.causal
    bias = call.bias

    def scores(q: jax.Array, k: jax.Array, shared: Tree, t: jax.Array, s: jax.Array) -> jax.Array:
        return attention_scores(q, k, None if bias is None else bias.replace(arrays=shared)(s[None, :] - t[:, None]), call.cap)

    def allowed(query_marks: Tree, key_marks: Tree, window: Tree, t: jax.Array, s: jax.Array) -> jax.Array | None:
        segments = (query_marks[0], key_marks[0]) if query_marks else None
        prefix_BS = key_marks[-1] if mask.prefix_BS is not None and causal else None
        return visible(t, s, segments, prefix_BS, window, causal)

    def needed(window: Tree, t: jax.Array, s: jax.Array) -> jax.Array | None:
        conditions = []
        if causal and mask.prefix_BS is None:
            conditions.append(s[0] <= t[-1])
        if window is not None:
            far = jnp.maximum(t[0] - s[-1], s[0] - t[-1])  # the smallest distance of the two blocks
            conditions.append((jnp.asarray(window) <= 0) | (far < window))
        return functools.reduce(jnp.logical_and, conditions) if conditions else None

    segments = mask.segments_BT is not None
    key_marks = ((mask.segments_BS,) if segments else ()) + ((mask.prefix_BS,) if mask.prefix_BS is not None and causal else ())
    given = Operands(
        queries=constrain(call.queries, "batch", "heads", "length", None),
        keys=call.keys,
        values=call.values,
        shared=() if bias is None else bias.arrays,
        query_marks=(mask.segments_BT,) if segments else (),
        key_marks=key_marks,
        whole=mask.window,
        seeds_B2=seeds(call.keys_B) if call.rate else None,
    )
    balanced = causal and mask.prefix_BS is None
    return blockwise(Rule(scores, allowed, needed, call.queries.shape[1], balanced, call.rate), given)
