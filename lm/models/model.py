"""A whole Transformer: token table, what is added to it, the stack, and what turns states into logits."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.errors import check
from lm.models.attention import Cache, Mask
from lm.models.heads import Head
from lm.models.layers import Embed, Linear, dropout, named
from lm.models.mlp import ACTIVATIONS
from lm.models.norms import Norm
from lm.models.positions import sinusoids
from lm.models.stack import Stack
from lm.models.transformer import Transformer
from lm.sharding import constrain


def token_table(config: Transformer, name: str | None = None) -> Embed:
    """Make the embedding table (rows, embed) of a stack."""
    return Embed(config.rows, config.embed_size, std=config.init, truncate=config.init_truncate, name=name)


class Inputs(nn.Module):
    """Token vectors (B, T, E) to what the stack reads: plus places and token types, normalised, dropped out."""

    config: Transformer

    @nn.compact
    def __call__(self, x_BTE, positions_BT, types_BT=None, keys_B=None):
        c, width, dtype = self.config, x_BTE.shape[-1], x_BTE.dtype
        if c.embed_scale != 1:
            x_BTE = x_BTE * jnp.asarray(c.embed_scale, dtype)
        if c.positions == "learned":
            table = {"std": c.init_positions, "truncate": c.init_truncate, "name": "places"}
            x_BTE = x_BTE + Embed(c.context + c.offset, width, axis="position", **table)(positions_BT + c.offset, dtype)
        elif c.positions == "sinusoidal":
            x_BTE = x_BTE + sinusoids(positions_BT, width).astype(dtype)
        if c.types:
            types_BT = jnp.zeros(x_BTE.shape[:2], jnp.int32) if types_BT is None else types_BT
            table = Embed(c.types, width, axis=None, std=c.init, truncate=c.init_truncate, name="types")
            x_BTE = x_BTE + table(types_BT, dtype)
        if c.embed_norm:
            x_BTE = Norm(kind=c.norm, eps=c.eps, bias=c.bias, name="norm")(x_BTE)
        return constrain(dropout(x_BTE, c.dropout, keys_B, c.depth), "batch", "length", None)


def projection(config: Transformer, name: str | None = None) -> Linear | None:
    """Make the layer between tables of another width and the stack."""
    if config.embed_size == config.width:
        return None
    init = config.linear(config.embed_size)
    return Linear((config.embed_size, config.width), (None, "embed"), name=name, **init)


class Transform(nn.Module):
    """Dense layer, activation and norm before the vocabulary, onto the tables' width (Devlin et al. 2019)."""

    config: Transformer

    @nn.compact
    def __call__(self, h_BTD):
        c = self.config
        h_BTE = Linear((c.width, c.embed_size), ("embed", None), name="dense", **c.linear(c.width))(h_BTD)
        return Norm(kind=c.norm, eps=c.eps, axis=None, name="norm")(ACTIVATIONS[c.activation][0](h_BTE))


class Model(nn.Module):
    """Tokens to hidden states, and the head that turns those into logits."""

    config: Transformer

    def setup(self):
        c = self.config
        self.embed = token_table(c)
        self.input = Inputs(c)
        self.project = projection(c)
        self.stack = Stack(c)
        if not c.tied:
            self.output = Embed(c.rows, c.width, std=c.head_std, truncate=c.init_truncate)
        if c.transform:
            self.last = Transform(c, name="transform")
        if c.head_bias:
            self.bias = self.param("head_bias", named(nn.initializers.zeros, ("vocab",)), (c.rows,))

    def __call__(
        self,
        tokens_BT,
        positions_BT=None,
        segments_BT=None,
        *,
        types_BT=None,
        prefix_BT=None,
        keys_B=None,
        cache=None,
        causal=True,
        collect=False,
    ):
        """Return hidden states (B, T, D) in the compute dtype, and the cache when one was given.

        `positions_BT` counts within a document, `segments_BT` numbers the documents of a packed row from 1 (0: padding);
        None: every row is one document. `types_BT`: rows of the token-type table. `prefix_BT`: tokens that all of their
        segment see though `causal`. `keys_B`: one key a row turns dropout on. `collect` gives the states before and
        after every layer (L + 1, B, T, D) in the cache's place.
        """
        c = self.config
        if self.is_initializing():  # the head has parameters that no hidden state needs
            self.head()
            self.transform(jnp.zeros((1, 1, c.width)))
        start = None if cache is None else cache.length
        offset = 0 if start is None else start
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(offset + jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        x_BTD = self.input(self.embed(tokens_BT, jnp.dtype(c.dtype)), positions_BT, types_BT, keys_B)
        x_BTD = x_BTD if self.project is None else self.project(x_BTD)
        keys_segments = segments_BT
        if cache is not None:
            if segments_BT is None:
                segments_BT = jnp.ones_like(tokens_BT)
            keys_segments = jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, offset))
        mask = Mask(segments_BT=segments_BT, segments_BS=keys_segments, start=start, prefix_BS=prefix_BT, causal=causal)
        layers = None if cache is None else cache.layers
        h_BTD, layers, states = self.stack(x_BTD, positions_BT, mask, keys_B, layers, collect=collect)
        if collect:
            return h_BTD, jnp.concatenate([x_BTD[None], states])
        if cache is not None:
            cache = Cache(
                layers=layers, segments_BS=keys_segments, length=jnp.asarray(offset + tokens_BT.shape[1], jnp.int32)
            )
        return h_BTD, cache

    def transform(self, h):
        """Prepare states (..., D) for the head: nothing unless the config has a transform."""
        return self.last(h) if self.config.transform else h

    def head(self) -> Head:
        """Give the vocabulary projection."""
        c = self.config
        table = self.embed.table if c.tied else self.output.table
        check(
            c.transform or table.shape[1] == c.width,
            f"a head of embed={c.embed} on width={c.width}: set transform=True",
        )
        bias_V = self.bias if c.head_bias else None
        return Head(table_VD=table, bias_V=bias_V, vocab=c.vocab, scale=c.logit_scale / c.mup, cap=c.logit_cap)


def empty_cache(config: Transformer, rows: int, length: int, *, stacked: bool = True) -> Cache:
    """Make a cache for `rows` rows of at most `length` tokens; `stacked` as the parameters of the layers are."""
    shape = (config.kv, length, config.head_size)
    shape = shape if rows == 1 and not stacked else (rows, *shape)

    def pair(*lead):
        return jnp.zeros((*lead, *shape), config.dtype), jnp.zeros((*lead, *shape), config.dtype)

    return Cache(
        layers=pair(config.depth) if stacked else tuple(pair() for _ in range(config.depth)),
        segments_BS=jnp.zeros((rows, length), jnp.int32),
        length=None,
    )
