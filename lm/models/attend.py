"""Attention from queries, keys and values: the mask rule, and softmax over the scores of whole rows of keys."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.models.products import multiply
from lm.sharding import constrain, pieces

SHORT = 1024  # rows of at most so many tokens: the scores of the row are kept, and not computed twice
ODD = "lengths that are no multiples of 128"
AXIS = "context"  # the mesh axis that cuts rows: keys go around its devices in a ring
BLOCK, BLOCKS = 128, 8  # fewest queries of a block, most blocks; a causal block omits the keys after it


class Bias(struct.PyTreeNode):
    """An additive bias (N, T, S) as a function of distances, key minus query, (T, S), and of arrays with a gradient."""

    function: Callable[..., jax.Array] = struct.field(pytree_node=False)
    arrays: tuple[jax.Array, ...] = ()

    def __call__(self, distances_TS: jax.Array) -> jax.Array:
        return self.function(distances_TS, *self.arrays)


class Mask(struct.PyTreeNode):
    """The keys that a query attends to: those of its segment and, if causal, at or before it in the row.

    `segments_BT`, `segments_BS`: 0 is padding, masked for all; None: the row is one segment. `start`: row index of the
    first query (in a cache, the number of keys already there), None: 0. `window` > 0: only the last `window` keys.
    `prefix_BS`: keys visible to every query of their segment, causal or not.
    """

    segments_BT: jax.Array | None = None
    segments_BS: jax.Array | None = None
    start: jax.Array | None = None  # None and not 0: a number would become a traced value inside scan and remat
    window: jax.Array | int | None = None
    prefix_BS: jax.Array | None = None
    causal: bool = struct.field(pytree_node=False, default=True)

    def offset(self) -> jax.Array | int:
        return 0 if self.start is None else self.start

    def distances(self, queries: slice, keys: int) -> jax.Array:
        """Return key minus query, (T, S), for a slice of the queries and the first `keys` keys."""
        return jnp.arange(keys)[None, :] - (self.offset() + jnp.arange(queries.start, queries.stop)[:, None])

    def allowed(self, queries: slice, keys: int) -> jax.Array | None:
        """Return booleans broadcastable to (B, T, S) for a slice of the queries and the first `keys` keys."""
        t, s = self.offset() + jnp.arange(queries.start, queries.stop), jnp.arange(keys)
        marks = None if self.segments_BT is None else (self.segments_BT[:, queries], self.segments_BS[:, :keys])
        prefix_BS = None if self.prefix_BS is None else self.prefix_BS[:, :keys]
        return visible(t, s, marks, prefix_BS, self.window, self.causal)


def visible(
    t: jax.Array,
    s: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None,
    prefix_BS: jax.Array | None,
    window: jax.Array | int | None,
    causal: bool,
) -> jax.Array | None:
    """Return where the queries at indices t (T,) of the row may attend to the keys at s (S,): broadcastable to (B, T, S).

    `segments`: those of the queries (B, T) and of the keys (B, S); None: everything is visible.
    """
    t, s = t[:, None], s[None, :]
    seen = None
    if causal:
        seen = (s <= t)[None]
        # Before segments are compared: a prefix is visible within its own document only.
        if prefix_BS is not None:
            seen = seen | prefix_BS[:, None]
    if window is not None:
        # Windows are traced where layers are scanned, so full attention (0) is a window longer than any row.
        near = jnp.abs(t - s) < jnp.where(jnp.asarray(window) > 0, window, np.iinfo(np.int32).max)
        seen = near[None] if seen is None else seen & near[None]
    if segments is not None:
        segment_BT1, segment_B1S = segments[0][:, :, None], segments[1][:, None]
        same = (segment_BT1 == segment_B1S) & (segment_B1S != 0)
        seen = same if seen is None else seen & same
    return seen


def ring_size() -> int:
    """Return the devices of the ring; 1 without a mesh, or inside a mapped function."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or AXIS in mesh.manual_axes else mesh.shape[AXIS]


@dataclass(frozen=True)
class Call:
    """One call of attention: scaled queries (B, N, T, H), keys and values (B, K, S, H), and the terms of their scores.

    `cap` > 0: scores become cap * tanh(scores / cap). `rate`: dropout of the weights, by one key a row. `windows`: those of all
    layers, of which `mask.window` is this layer's.
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    mask: Mask
    bias: Bias | None = None
    cap: float = 0.0
    keys_B: jax.Array | None = None
    rate: float = 0.0
    windows: tuple[int, ...] = (0,)

    @property
    def lengths(self) -> tuple[int, int]:
        return self.queries.shape[2], self.keys.shape[2]

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities that the call needs, of the words in `lm.models.backends`."""
        mask, lengths = self.mask, self.lengths
        found = {
            "causal": mask.causal,
            "segments": mask.segments_BT is not None,
            "window": mask.window is not None,
            "prefix": mask.prefix_BS is not None and mask.causal,
            "bias": self.bias is not None,
            "cap": bool(self.cap),
            "dropout": self.keys_B is not None and self.rate > 0,
            "grouped heads": self.queries.shape[1] != self.keys.shape[1],
            "a cache": mask.start is not None,
            "rows cut over devices": ring_size() > 1,
            "float32": self.queries.dtype == jnp.float32,
            ODD: any(n % 128 for n in lengths),
        }
        return frozenset(name for name, needed in found.items() if needed)


def attend(call: Call) -> jax.Array:
    """Return softmax attention, (B, N, T, H); scores and softmax in float32.

    Queries go in blocks: under a causal mask a block never multiplies the keys after it, which saves up to half of the
    products, and the scores of the whole row never exist at once. A fully masked query returns the mean of the values;
    such rows are padding. Heads come before positions, so that every product is one of plain matrices.
    """
    q_BNTH, mask = call.queries, call.mask
    # Every device needs all the keys of its rows: the context axis gathers them here.
    k_BKSH, v_BKSH = (constrain(y, "batch", "kv_heads", None, None) for y in (call.keys, call.values))
    length, keys = call.lengths
    triangular = mask.causal and mask.prefix_BS is None and length == keys and mask.start is None
    triangular &= pieces("length") == (1,)  # a block of a row cut over devices would keep only one of them busy
    size = max(BLOCK, length // BLOCKS)  # every block is traced on its own: more of them would be slow to compile
    size = size if triangular and length % size == 0 else length
    outputs = []
    for low in range(0, length, size):
        queries = slice(low, low + size)
        seen = low + size if triangular else keys
        bias_NTS = None if call.bias is None else call.bias(mask.distances(queries, seen))
        kept = kept_weights(seeds(call.keys_B), call.rate, q_BNTH.shape[1], jnp.arange(low, low + size), jnp.arange(seen))
        scores_BNTS = attention_scores(q_BNTH[:, :, queries], k_BKSH[:, :, :seen], bias_NTS, call.cap)
        scores_BNTS = masked(scores_BNTS, mask.allowed(queries, seen))
        outputs.append(weighted_values(scores_BNTS, v_BKSH[:, :, :seen], kept))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, 2)


def attention_scores(q_BNTH: jax.Array, k_BKSH: jax.Array, bias_NTS: jax.Array | None, cap: float) -> jax.Array:
    """Return scores before mask and softmax, float32 (B, N, T, S)."""
    batch, heads, length, head = q_BNTH.shape
    kv, keys = k_BKSH.shape[1:3]
    # The query heads of one key-value head go through as one matrix (G T, H).
    q_BKTH = q_BNTH.reshape(batch, kv, -1, head)
    scores = multiply("bkth,bksh->bkts", q_BKTH, k_BKSH)
    scores = scores.reshape(batch, heads, length, keys)
    # Capped before the mask, whose lowest numbers tanh would lift to -cap.
    if cap:
        scores = cap * jnp.tanh(scores / cap)
    return scores if bias_NTS is None else scores + bias_NTS


def masked(scores_BNTS: jax.Array, allowed_BTS: jax.Array | None) -> jax.Array:
    """Lower the scores of masked keys until their weights are 0; a fully masked query has equal weights.

    By a sum, whose gradient costs nothing, and not by a choice, whose gradient is one more pass over all scores.
    """
    if allowed_BTS is None:
        return scores_BNTS
    return scores_BNTS + jnp.where(allowed_BTS, 0, jnp.finfo(jnp.float32).min / 2)[:, None]


def seeds(keys_B: jax.Array | None) -> jax.Array | None:
    """Return two words of each row's key, (B, 2)."""
    return None if keys_B is None else jax.random.key_data(keys_B)[:, :2]


def kept_weights(seeds_B2: jax.Array | None, rate: float, heads: int, t: jax.Array, s: jax.Array) -> jax.Array | None:
    """Return the factor of dropout on the weights of queries t (T,) and keys s (S,): 0 or 1 / (1 - rate), (B, N, T, S).

    None without dropout. A hash of (row, head, query, key) and not a generator: the mask is the same whatever the blocks and
    the mesh are, and no bits travel between devices. The mixer is the 32-bit finaliser of MurmurHash3 (A. Appleby), three
    rounds; the rate is exact to 2**-17.
    """
    if seeds_B2 is None or not rate:
        return None

    def mix(x: jax.Array) -> jax.Array:
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    words = seeds_B2.astype(jnp.uint32)
    head_BN = mix(words[:, :1] ^ jnp.arange(heads, dtype=jnp.uint32)[None])
    query_BNT = mix(head_BN[..., None] + t.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    bits = mix(query_BNT[..., None] + words[:, 1][:, None, None, None] + s.astype(jnp.uint32) * jnp.uint32(0x85EBCA77))
    return jnp.where((bits >> 16) >= round(rate * 2**16), 1 / (1 - rate), 0.0)


def weighted_values(scores_BNTS: jax.Array, v_BKSH: jax.Array, kept_BNTS: jax.Array | None = None) -> jax.Array:
    """Return softmax(scores), times factors of dropout, times values, (B, N, T, H), in few passes over the scores.

    The softmax's division comes after the product, as in FlashAttention (Dao et al. 2022): then the gradient of its sum
    is one of (B, N, T, H) and no pass over all scores. Values times weights, in this order, make the gradient of the
    values a product of plain matrices, too.
    """
    batch, heads, length, keys = scores_BNTS.shape
    kv = v_BKSH.shape[1]
    # The maximum prevents overflow and cancels in the division, so no gradient flows through it.
    weights = jnp.exp(scores_BNTS - jax.lax.stop_gradient(scores_BNTS.max(-1, keepdims=True)))
    total_BNT1 = weights.sum(-1, keepdims=True)
    # After the total: dropped weights are not replaced by scaling up the others, as in dropout behind a softmax.
    weights = weights if kept_BNTS is None else weights * kept_BNTS
    weights = weights.astype(v_BKSH.dtype).reshape(batch, kv, -1, keys)
    y_BKHT = multiply("bksh,bkts->bkht", v_BKSH, weights)
    y_BNTH = y_BKHT.swapaxes(2, 3).reshape(batch, heads, length, -1)
    return (y_BNTH / total_BNT1).astype(v_BKSH.dtype)
