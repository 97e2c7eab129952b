"""Multi-head attention with grouped key-value heads, one mask rule and an optional key-value cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lm.models.layers import Linear, dropout, fold
from lm.models.norms import Norm
from lm.models.positions import POSITIONS
from lm.sharding import constrain, pieces

BLOCK, BLOCKS = 128, 8  # fewest queries of a block, most blocks; a causal block omits the keys after it

Bias = Callable[[slice, int], jax.Array] | None  # (queries, number of keys) -> additive bias (N, T, S)
Pair = tuple[jax.Array, jax.Array]  # keys and values of a layer


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

    def allowed(self, queries: slice, keys: int) -> jax.Array | None:
        """Return booleans broadcastable to (B, T, S) for a slice of the queries and the first `keys` keys."""
        t = self.offset() + jnp.arange(queries.start, queries.stop)[:, None]
        s = jnp.arange(keys)[None, :]
        seen = None
        if self.causal:
            seen = (s <= t)[None]
            # Before segments are compared: a prefix is visible within its own document only.
            if self.prefix_BS is not None:
                seen = seen | self.prefix_BS[:, None, :keys]
        if self.window is not None:
            # Windows are traced where layers are scanned, so full attention (0) is a window longer than any row.
            near = jnp.abs(t - s) < jnp.where(jnp.asarray(self.window) > 0, self.window, np.iinfo(np.int32).max)
            seen = near[None] if seen is None else seen & near[None]
        if self.segments_BT is not None:
            segment_BT1, segment_B1S = self.segments_BT[:, queries, None], self.segments_BS[:, None, :keys]
            same = (segment_BT1 == segment_B1S) & (segment_B1S != 0)
            seen = same if seen is None else seen & same
        return seen


def attend(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    *,
    mask: Mask,
    bias_NTS: Bias,
    cap: float,
    keys_B: jax.Array | None,
    rate: float,
) -> jax.Array:
    """Softmax attention of scaled queries, (B, N, T, H); scores and softmax in float32.

    Queries go in blocks: under a causal mask a block never multiplies the keys after it, which saves up to half of the
    products, and the scores of the whole row never exist at once. A fully masked query returns the mean of the values;
    such rows are padding. `cap` > 0: scores become cap * tanh(scores / cap); `rate`: dropout of the weights. Heads come
    before positions, so that every product is one of plain matrices.
    """
    length, keys = q_BNTH.shape[2], k_BKSH.shape[2]
    triangular = mask.causal and mask.prefix_BS is None and length == keys and mask.start is None
    triangular &= pieces("length") == (1,)  # a block of a row cut over devices would keep only one of them busy
    size = max(BLOCK, length // BLOCKS)  # every block is traced on its own: more of them would be slow to compile
    size = size if triangular and length % size == 0 else length
    outputs = []
    for low in range(0, length, size):
        queries = slice(low, low + size)
        seen = low + size if triangular else keys
        bias = None if bias_NTS is None else bias_NTS(queries, seen)
        # Folded with the block's first query: all blocks would share one dropout mask.
        block_keys = fold(keys_B, low)
        scores_BNTS = attention_scores(q_BNTH[:, :, queries], k_BKSH[:, :, :seen], bias, cap)
        scores_BNTS = masked(scores_BNTS, mask.allowed(queries, seen))
        outputs.append(weighted_values(scores_BNTS, v_BKSH[:, :, :seen], block_keys, rate))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, 2)


def attention_scores(q_BNTH: jax.Array, k_BKSH: jax.Array, bias_NTS: jax.Array | None, cap: float) -> jax.Array:
    """Return scores before mask and softmax, float32 (B, N, T, S)."""
    batch, heads, length, head = q_BNTH.shape
    kv, keys = k_BKSH.shape[1:3]
    # The query heads of one key-value head go through as one matrix (G T, H).
    q_BKTH = q_BNTH.reshape(batch, kv, -1, head)
    scores = jnp.einsum("bkth,bksh->bkts", q_BKTH, k_BKSH, preferred_element_type=jnp.float32)
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


def weighted_values(
    scores_BNTS: jax.Array, v_BKSH: jax.Array, keys_B: jax.Array | None, rate: float, site: int = 0
) -> jax.Array:
    """Return softmax(scores) with dropout, times values, (B, N, T, H), in as few passes over the scores as possible.

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
    weights = dropout(weights, rate, keys_B, site).astype(v_BKSH.dtype).reshape(batch, kv, -1, keys)
    y_BKHT = jnp.einsum("bksh,bkts->bkht", v_BKSH, weights, preferred_element_type=jnp.float32)
    y_BNTH = y_BKHT.swapaxes(2, 3).reshape(batch, heads, length, -1)
    return (y_BNTH / total_BNT1).astype(v_BKSH.dtype)


class Cache(struct.PyTreeNode):
    """Keys and values of the tokens read so far; `length` entries of each row are filled.

    `layers`: pairs (k_BKSH, v_BKSH), one per layer, or one pair with a leading axis L: like the layers' parameters. A
    single row has no axis B there: XLA on a CPU drops an axis of size 1 by copying the whole cache.
    """

    layers: Any
    segments_BS: jax.Array
    length: jax.Array | None  # None: empty


def write(old: jax.Array, y_BKTH: jax.Array, start: jax.Array | int) -> jax.Array:
    """Write new keys or values into a layer's cache from index `start` on."""
    y = y_BKTH.reshape(*old.shape[:-2], *y_BKTH.shape[2:]).astype(old.dtype)
    return jax.lax.dynamic_update_slice(old, y, (*[0] * (old.ndim - 2), start, 0))


class Attention(nn.Module):
    """Attention of one layer, to itself or to a source; `config` is a `lm.models.transformer.Transformer`."""

    config: Any

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        source_BSD: jax.Array | None = None,
        cross: bool = False,
        positions_BT: jax.Array | None = None,
        mask: Mask,
        bias_NTS: Bias = None,
        keys_B: jax.Array | None = None,
        cache: Pair | None = None,
    ) -> tuple[jax.Array, Pair | None]:
        """Return (B, T, D) and this layer's cache, a pair (k_BKSH, v_BKSH), with the new keys and values written in.

        `cross` attends to a source, without positions, for the decoder's and the encoder's do not compare: its pair is
        made from `source_BSD`, and read from the cache in calls without a source.
        """
        c, rows = self.config, x_BTD.shape[0]
        from_BSD, cached = source_BSD if cross else x_BTD, cross and source_BSD is None
        bias = c.bias if c.qkv_bias is None else c.qkv_bias
        rotate = None if cross else POSITIONS[c.positions].rotate

        def norm(name: str, y: jax.Array) -> jax.Array:
            return Norm(kind=c.norm, eps=c.eps, bias=False, axis=None, name=name)(y) if c.qk_norm else y

        def turn(y_BTNH: jax.Array) -> jax.Array:
            return y_BTNH if rotate is None else rotate(y_BTNH, positions_BT, c, mask.window)

        # The scale goes into the queries, (B, N, T, H), not into the scores, (B, N, T, S).
        query = {"bias": bias, "lora": c.lora, **c.linear(c.width, query=True)}
        q_BTNH = Linear((c.width, c.heads, c.head_size), ("embed", "heads", "head"), name="query", **query)(x_BTD, keys_B)
        # The norm comes before the rotation (Qwen 3, Gemma 3), with which its scales do not commute.
        q_BNTH = (turn(norm("query_norm", q_BTNH)) * c.attention_scale).swapaxes(1, 2)
        q_BNTH = constrain(q_BNTH, "batch", "heads", "length", None)

        # A source's keys and values are the same for every token of the target, so decoding computes them once.
        if cached:
            k_BKSH, v_BKSH = (y.reshape(rows, *y.shape[-3:]) for y in cache)
        else:
            kv = (c.width, c.kv, c.head_size), ("embed", "kv_heads", "head")
            into = {"bias": bias, "lora": c.lora, **c.linear(c.width)}
            k_BTKH, v_BTKH = (Linear(*kv, name=name, **into)(from_BSD, keys_B) for name in ("key", "value"))
            k_BKSH, v_BKSH = turn(norm("key_norm", k_BTKH)).swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        if cross:
            cache = cache if cached else (k_BKSH, v_BKSH)
        elif cache is not None:
            cache = write(cache[0], k_BKSH, mask.offset()), write(cache[1], v_BKSH, mask.offset())
            # A first pass reads only the keys it wrote itself; later ones read the whole cache.
            seen = x_BTD.shape[1] if mask.start is None else None
            k_BKSH, v_BKSH = (y.reshape(rows, *y.shape[-3:])[:, :, :seen].astype(x_BTD.dtype) for y in cache)
        # Every device needs all the keys of its rows: the context axis gathers them here.
        k_BKSH, v_BKSH = (constrain(y, "batch", "kv_heads", None, None) for y in (k_BKSH, v_BKSH))

        # The weights of the whole row exist only for a caller who collects them (lm.explain).
        if self.is_mutable_collection("intermediates"):
            whole = slice(0, q_BNTH.shape[2]), k_BKSH.shape[2]
            bias_whole = None if bias_NTS is None else bias_NTS(*whole)
            scores_BNTS = attention_scores(q_BNTH, k_BKSH, bias_whole, c.attention_cap)
            self.sow("intermediates", "weights", jax.nn.softmax(masked(scores_BNTS, mask.allowed(*whole)), -1))

        options = {"cap": c.attention_cap, "keys_B": keys_B, "rate": c.attention_dropout}
        y_BNTH = attend(q_BNTH, k_BKSH, v_BKSH, mask=mask, bias_NTS=bias_NTS, **options)
        out = (c.heads, c.head_size, c.width), ("heads", "head", "embed")
        init = {"bias": c.bias, "lora": c.lora, **c.linear(c.heads * c.head_size, out=True)}
        return Linear(*out, inputs=2, name="out", **init)(y_BNTH.swapaxes(1, 2), keys_B), cache
