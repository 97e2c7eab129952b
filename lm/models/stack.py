"""The layers of a Transformer: one block, repeated over stacked parameters."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lm.models.adapters import Bottleneck
from lm.models.attend import Bias, Mask
from lm.models.attention import Attention
from lm.models.layers import dropout, fold, repeat
from lm.models.mlp import FeedForward
from lm.models.norms import Norm
from lm.models.positions import POSITIONS
from lm.models.transformer import Transformer
from lm.sharding import constrain_residual, into_sublayer, out_of_sublayer


class Shared(struct.PyTreeNode):
    """Arguments that are the same for every layer; `source_BSD`: an encoder's states, masked by `source_mask`."""

    positions_BT: jax.Array
    mask: Mask
    keys_B: jax.Array | None = None
    source_BSD: jax.Array | None = None
    source_mask: Mask | None = None
    bias: Bias | None = None
    collect: bool = struct.field(pytree_node=False, default=False)


def mixture() -> ModuleType:
    """Return the layers of experts, loaded where a model has them."""
    from lm.models import mixture

    return mixture


class Block(nn.Module):
    """One layer: attention, cross-attention where there is a source, feed-forward, each with norm and residual."""

    config: Transformer

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, scanned: tuple[Any, Any, Any], shared: Shared
    ) -> tuple[jax.Array, tuple[Any, jax.Array | None, Any]]:
        """Run the layer; `scanned`: its number, its attention window (None: no layer has one) and its cache.

        Return the states and, stacked by the scan, the cache, with `shared.collect` the states again, and the statistics
        of a router.
        """
        # The number makes the keys of dropout differ between layers that run the same traced code.
        c, (layer, window, cache) = self.config, scanned
        keys_B = fold(shared.keys_B, layer)
        mask = shared.mask if window is None else shared.mask.replace(window=window)
        crossing, decoding, source_cache = shared.source_mask is not None, cache is not None, None
        if crossing and decoding:  # the decoder's own keys and values, and the source's
            cache, source_cache = cache

        experts, real_BT = c.experts.count > 0, shared.mask.segments_BT
        routed = mixture().MixtureOfExperts(c, name="mlp") if experts else None
        dense = None if experts else FeedForward(c, name="mlp")
        routing: list[Any] = []

        def feed(y: jax.Array) -> jax.Array:
            y = into_sublayer(y)
            if dense is not None:
                return dense(y, keys_B)
            y, found = routed(y, None if real_BT is None else real_BT > 0)
            routing.append(found)
            return y

        def norm(name: str) -> Norm:
            return Norm(kind=c.norm, eps=c.eps, bias=c.bias, name=name)

        def attention(y: jax.Array) -> tuple[jax.Array, Any]:
            attend = Attention(c, name="attention")
            y = into_sublayer(y)
            return attend(y, positions_BT=shared.positions_BT, mask=mask, bias=shared.bias, keys_B=keys_B, cache=cache)

        def cross(y: jax.Array) -> tuple[jax.Array, Any]:
            attend = Attention(c, name="cross")
            source = {"source_BSD": shared.source_BSD, "cross": True, "cache": source_cache}
            # Folded, as both attentions drop their weights at the same site.
            y = into_sublayer(y)
            return attend(y, mask=shared.source_mask, keys_B=fold(keys_B, 7), **source)

        # Sites: 1 attention, 2 feed-forward, 4 cross-attention; 3 lies inside the feed-forward.
        def drop(y: jax.Array, site: int) -> jax.Array:
            y = dropout(out_of_sublayer(y), c.dropout, keys_B, site)
            part = {1: "attention", 2: "mlp"}.get(site)
            if part and c.adapter.follows(part):
                y = Bottleneck(c.width, c.adapter, name=f"adapter_{part}")(y)
            return y

        def after(y: jax.Array, name: str) -> jax.Array:
            return norm(name)(y) if c.placement == "sandwich" else y

        # Parallel (GPT-J, PaLM): both sub-layers read one norm, so that their matrices can be multiplied at once.
        if c.parallel:
            h = norm("norm0")(x_BTD)
            y, cache = attention(h)
            x_BTD = x_BTD + drop(y, 1) + drop(feed(h), 2)
        # Pre-norm and sandwich: the residual stream itself is never normalised, which keeps deep stacks stable.
        elif c.placement != "post":
            y, cache = attention(norm("norm0")(x_BTD))
            x_BTD = x_BTD + drop(after(y, "norm0_out"), 1)
            if crossing:
                y, source_cache = cross(norm("cross_norm")(x_BTD))
                x_BTD = x_BTD + drop(after(y, "cross_norm_out"), 4)
            x_BTD = x_BTD + drop(after(feed(norm("norm1")(x_BTD)), "norm1_out"), 2)
        # Post-norm (Vaswani et al. 2017, BERT): the sum is normalised.
        else:
            y, cache = attention(x_BTD)
            x_BTD = norm("norm0")(x_BTD + drop(y, 1))
            if crossing:
                y, source_cache = cross(x_BTD)
                x_BTD = norm("cross_norm")(x_BTD + drop(y, 4))
            x_BTD = norm("norm1")(x_BTD + drop(feed(x_BTD), 2))

        # Pinned once a layer, so that the scan's carry keeps one layout over the mesh.
        x_BTD = constrain_residual(x_BTD)
        self.sow("intermediates", "states", x_BTD)
        cache = (cache, source_cache) if crossing and decoding else cache
        return x_BTD, (cache, x_BTD if shared.collect else None, routing[0] if experts else None)


class Stack(nn.Module):
    """The layers, their parameters stacked on a leading axis L (or one set for all, `share`), and the last norm.

    Decoding passes each layer's parameters and cache as arrays of their own ("layer0", ...): on a CPU the slice of a
    stack is a copy, which would double the memory that is read for every token.
    """

    config: Transformer

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        keys_B: jax.Array | None = None,
        cache: Any = None,
        source_BSD: jax.Array | None = None,
        source_mask: Mask | None = None,
        collect: bool = False,
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """Return the states (B, T, D), the cache, and with `collect` the states after each layer (L, B, T, D)."""
        c = self.config
        shared = Shared(positions_BT, mask, keys_B, source_BSD, source_mask, self.bias(mask), collect)
        # None without windows, so that full attention computes no distances.
        windows = [c.windows[i % len(c.windows)] for i in range(c.depth)] if any(c.windows) else None

        # Decoding: a Python loop, as there is no stack to scan over.
        if self.has_variable("params", "layer0"):
            caches = []
            for i in range(c.depth):
                window, layer_cache = windows and windows[i], cache and cache[i]
                x_BTD, (layer_cache, *_) = Block(c, name=f"layer{i}")(x_BTD, (i, window, layer_cache), shared)
                caches.append(layer_cache)
            return self.last(x_BTD, keys_B), cache and tuple(caches), None

        # Training: one traced block, so that compile time does not grow with the depth.
        self.sow("intermediates", "input", x_BTD)
        layers = jnp.arange(c.depth, dtype=jnp.int32)
        sizes_L = windows and jnp.asarray(windows, jnp.int32)
        scan = repeat(Block, c, share=c.share, remat=c.remat, unroll=c.unroll)
        x_BTD, (cache, states, routing) = scan(c, name="layers")(x_BTD, (layers, sizes_L, cache), shared)
        if routing is not None:
            mixture().add_losses(c.experts, routing)
        return self.last(x_BTD, keys_B), cache, states

    def last(self, x_BTD: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        """Apply the final norm of a pre-norm stack."""
        c = self.config
        x_BTD = Norm(kind=c.norm, eps=c.eps, bias=c.bias, name="norm")(x_BTD) if c.placement != "post" else x_BTD
        return dropout(x_BTD, c.dropout, keys_B, c.depth + 1) if c.last_dropout else x_BTD

    def bias(self, mask: Mask) -> Bias | None:
        """Return the additive attention bias as a function of distances, or None."""
        # A function, because attention goes in blocks: the bias of the whole row never exists at once.
        kind = POSITIONS[self.config.positions]
        return None if kind.bias is None else kind.bias(self.config, self.param, mask.causal)
