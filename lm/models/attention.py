"""Multi-head attention with grouped key-value heads, one mask rule and an optional key-value cache."""

from typing import Any

import jax
from flax import linen as nn
from flax import struct

from lm.models.attend import Bias, Call, Mask, attention_scores, masked
from lm.models.backends import run
from lm.models.layers import Linear
from lm.models.norms import Norm
from lm.models.positions import POSITIONS
from lm.sharding import constrain

Pair = tuple[jax.Array, jax.Array]  # keys and values of a layer


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
        bias: Bias | None = None,
        keys_B: jax.Array | None = None,
        cache: Pair | None = None,
    ) -> tuple[jax.Array, Pair | None]:
        """Return (B, T, D) and this layer's cache, a pair (k_BKSH, v_BKSH), with the new keys and values written in.

        `cross` attends to a source, without positions, for the decoder's and the encoder's do not compare: its pair is
        made from `source_BSD`, and read from the cache in calls without a source.
        """
        c, rows = self.config, x_BTD.shape[0]
        from_BSD, cached = source_BSD if cross else x_BTD, cross and source_BSD is None
        shift = c.bias if c.qkv_bias is None else c.qkv_bias
        rotate = None if cross else POSITIONS[c.positions].rotate

        def norm(name: str, y: jax.Array) -> jax.Array:
            return Norm(kind=c.norm, eps=c.eps, bias=False, axis=None, name=name)(y) if c.qk_norm else y

        def turn(y_BTNH: jax.Array) -> jax.Array:
            return y_BTNH if rotate is None else rotate(y_BTNH, positions_BT, c, mask.window)

        # The scale goes into the queries, (B, N, T, H), not into the scores, (B, N, T, S).
        query = {"bias": shift, "lora": c.lora, "quantize": c.quantize, **c.linear(c.width, query=True)}
        q_BTNH = Linear((c.width, c.heads, c.head_size), ("embed", "heads", "head"), name="query", **query)(x_BTD, keys_B)
        # The norm comes before the rotation (Qwen 3, Gemma 3), with which its scales do not commute.
        q_BNTH = (turn(norm("query_norm", q_BTNH)) * c.attention_scale).swapaxes(1, 2)
        q_BNTH = constrain(q_BNTH, "batch", "heads", "length", None)

        # A source's keys and values are the same for every token of the target, so decoding computes them once.
        if cached:
            k_BKSH, v_BKSH = (y.reshape(rows, *y.shape[-3:]) for y in cache)
        else:
            kv = (c.width, c.kv, c.head_size), ("embed", "kv_heads", "head")
            into = {"bias": shift, "lora": c.lora, "quantize": c.quantize, **c.linear(c.width)}
            k_BTKH, v_BTKH = (Linear(*kv, name=name, **into)(from_BSD, keys_B) for name in ("key", "value"))
            k_BKSH, v_BKSH = turn(norm("key_norm", k_BTKH)).swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        if cross:
            cache = cache if cached else (k_BKSH, v_BKSH)
        elif cache is not None:
            cache = write(cache[0], k_BKSH, mask.offset()), write(cache[1], v_BKSH, mask.offset())
            # A first pass reads only the keys it wrote itself; later ones read the whole cache.
            seen = x_BTD.shape[1] if mask.start is None else None
            k_BKSH, v_BKSH = (y.reshape(rows, *y.shape[-3:])[:, :, :seen].astype(x_BTD.dtype) for y in cache)

        # The weights of the whole row exist only for a caller who collects them (lm.explain).
        if self.is_mutable_collection("intermediates"):
            whole = slice(0, q_BNTH.shape[2]), k_BKSH.shape[2]
            bias_NTS = None if bias is None else bias(mask.distances(*whole))
            scores_BNTS = attention_scores(q_BNTH, k_BKSH, bias_NTS, c.attention_cap)
            self.sow("intermediates", "weights", jax.nn.softmax(masked(scores_BNTS, mask.allowed(*whole)), -1))

        options = {"bias": bias, "cap": c.attention_cap, "keys_B": keys_B, "rate": c.attention_dropout, "windows": c.windows}
        y_BNTH = run(c.attention, Call(q_BNTH, k_BKSH, v_BKSH, mask, **options))
        out = (c.heads, c.head_size, c.width), ("heads", "head", "embed")
        init = {"bias": c.bias, "lora": c.lora, "quantize": c.quantize, **c.linear(c.heads * c.head_size, out=True)}
        return Linear(*out, inputs=2, name="out", **init)(y_BNTH.swapaxes(1, 2), keys_B), cache
