"""The layers of a Transformer: one block, repeated over stacked parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lm.models.adapters import Bottleneck
from lm.models.attention import Attention, Mask
from lm.models.layers import dropout, fold, named
from lm.models.mlp import FeedForward
from lm.models.norms import Norm
from lm.models.positions import alibi_slopes, buckets
from lm.models.transformer import Transformer
from lm.sharding import constrain


class Shared(struct.PyTreeNode):
    """What every layer gets alike; `source_BSD` are an encoder's states, of which `source_mask` shows the allowed ones."""

    positions_BT: jax.Array
    mask: Mask
    keys_B: jax.Array | None = None
    source_BSD: jax.Array | None = None
    source_mask: Mask | None = None
    bias: Callable | None = struct.field(pytree_node=False, default=None)
    collect: bool = struct.field(pytree_node=False, default=False)


class Block(nn.Module):
    """One layer: attention, attention to the source where there is one, feed-forward, each with norm and residual."""

    config: Transformer

    @nn.compact
    def __call__(self, x_BTD, scanned, shared):
        c, (layer, window, cache) = self.config, scanned
        keys_B = fold(shared.keys_B, layer)
        mask = shared.mask if window is None else shared.mask.replace(window=window)
        crossing, decoding, of_source = shared.source_mask is not None, cache is not None, None
        if crossing and decoding:  # the decoder's own keys and values, and the source's
            cache, of_source = cache
        feed = FeedForward(c, name="mlp")

        def norm(name):
            return Norm(kind=c.norm, eps=c.eps, bias=c.bias, name=name)

        def attention(y):
            return Attention(c, name="attention")(
                y,
                positions_BT=shared.positions_BT,
                mask=mask,
                bias_NTS=shared.bias,
                keys_B=keys_B,
                cache=cache,
            )

        def cross(y):
            source = {"source_BSD": shared.source_BSD, "mask": shared.source_mask, "cross": True, "cache": of_source}
            return Attention(c, name="cross")(y, keys_B=fold(keys_B, 7), **source)

        def drop(y, site):
            y = dropout(y, c.dropout, keys_B, site)
            part = {1: "attention", 2: "mlp"}.get(site)
            if part and c.adapter.follows(part):
                y = Bottleneck(c.width, c.adapter, name=f"adapter_{part}")(y)
            return y

        def behind(y, name):
            return norm(name)(y) if c.placement == "sandwich" else y

        if c.parallel:
            h = norm("norm0")(x_BTD)
            y, cache = attention(h)
            x_BTD = x_BTD + drop(y, 1) + drop(feed(h, keys_B), 2)
        elif c.placement != "post":
            y, cache = attention(norm("norm0")(x_BTD))
            x_BTD = x_BTD + drop(behind(y, "norm0_out"), 1)
            if crossing:
                y, of_source = cross(norm("cross_norm")(x_BTD))
                x_BTD = x_BTD + drop(behind(y, "cross_norm_out"), 4)
            x_BTD = x_BTD + drop(behind(feed(norm("norm1")(x_BTD), keys_B), "norm1_out"), 2)
        else:
            y, cache = attention(x_BTD)
            x_BTD = norm("norm0")(x_BTD + drop(y, 1))
            if crossing:
                y, of_source = cross(x_BTD)
                x_BTD = norm("cross_norm")(x_BTD + drop(y, 4))
            x_BTD = norm("norm1")(x_BTD + drop(feed(x_BTD, keys_B), 2))
        x_BTD = constrain(x_BTD, "batch", "length", None)
        self.sow("intermediates", "states", x_BTD)
        cache = (cache, of_source) if crossing and decoding else cache
        return x_BTD, (cache, x_BTD if shared.collect else None)


class Stack(nn.Module):
    """The layers, their parameters stacked on a leading axis L (or one set for all, `share`), and the last norm.

    Decoding gives each layer's parameters and cache as arrays of their own ("layer0", ...): on a CPU the slice of a
    stack is a copy, which would double the memory that is read for every token.
    """

    config: Transformer

    @nn.compact
    def __call__(
        self, x_BTD, positions_BT, mask, keys_B=None, cache=None, source_BSD=None, source_mask=None, collect=False
    ):
        """Return the states (B, T, D), the cache, and with `collect` the states after each layer (L, B, T, D)."""
        c = self.config
        shared = Shared(
            positions_BT=positions_BT,
            mask=mask,
            keys_B=keys_B,
            source_BSD=source_BSD,
            source_mask=source_mask,
            bias=self.bias(mask),
            collect=collect,
        )
        windows = [c.windows[i % len(c.windows)] for i in range(c.depth)] if any(c.windows) else None
        if self.has_variable("params", "layer0"):
            caches = []
            for i in range(c.depth):
                window, layer_cache = windows and windows[i], cache and cache[i]
                x_BTD, (layer_cache, _) = Block(c, name=f"layer{i}")(x_BTD, (i, window, layer_cache), shared)
                caches.append(layer_cache)
            return self.last(x_BTD, keys_B), cache and tuple(caches), None
        self.sow("intermediates", "input", x_BTD)
        block = Block
        if c.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        scan = nn.scan(
            block,
            variable_axes={"intermediates": 0} if c.share else {"params": 0, "intermediates": 0},
            variable_broadcast="params" if c.share else False,
            split_rngs={"params": not c.share},
            in_axes=(0, nn.broadcast),
            length=c.depth,
            unroll=c.unroll or c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        layers = jnp.arange(c.depth, dtype=jnp.int32)
        windows = windows and jnp.asarray(windows, jnp.int32)
        x_BTD, (cache, states) = scan(c, name="layers")(x_BTD, (layers, windows, cache), shared)
        return self.last(x_BTD, keys_B), cache, states

    def last(self, x_BTD, keys_B):
        """Apply the norm that ends a stack whose sub-layers have theirs before."""
        c = self.config
        x_BTD = Norm(kind=c.norm, eps=c.eps, bias=c.bias, name="norm")(x_BTD) if c.placement != "post" else x_BTD
        return dropout(x_BTD, c.dropout, keys_B, c.depth + 1) if c.last_dropout else x_BTD

    def bias(self, mask: Mask):
        """Return the additive attention bias as a function of (slice of queries, number of keys), or None."""
        c = self.config
        if c.positions not in ("alibi", "bucket"):
            return None

        def relative(queries, keys):
            return jnp.arange(keys)[None, :] - (mask.offset() + jnp.arange(queries.start, queries.stop)[:, None])

        if c.positions == "alibi":
            slopes = alibi_slopes(c.heads)[:, None, None]
            return lambda queries, keys: -slopes * jnp.abs(relative(queries, keys)).astype(jnp.float32)
        init = nn.initializers.normal(c.width**-0.5 if c.init_fan_in else c.init)
        table = self.param("buckets", named(init, (None, "heads")), (32, c.heads))
        return lambda queries, keys: table[buckets(relative(queries, keys), causal=mask.causal)].transpose(2, 0, 1)
