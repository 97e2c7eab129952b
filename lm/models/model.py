"""A whole Transformer: token, position and type embeddings, the stack, and the projection onto the vocabulary."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.errors import check
from lm.models.attend import Mask
from lm.models.attention import Cache
from lm.models.heads import Head
from lm.models.layers import Embed, Linear, dropout, named
from lm.models.mlp import ACTIVATIONS
from lm.models.norms import Norm
from lm.models.positions import POSITIONS
from lm.models.stack import Stack
from lm.models.transformer import Transformer
from lm.sharding import constrain


def token_table(config: Transformer, name: str | None = None) -> Embed:
    """Make the embedding table (rows, embed) of a stack."""
    return Embed(config.rows, config.embed_size, std=config.init, truncate=config.init_truncate, name=name)


class Inputs(nn.Module):
    """Add positions and token types to token vectors (B, T, E), normalise and drop out: the inputs of the stack."""

    config: Transformer

    @nn.compact
    def __call__(
        self,
        x_BTE: jax.Array,
        positions_BT: jax.Array,
        types_BT: jax.Array | None = None,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        c, width, dtype = self.config, x_BTE.shape[-1], x_BTE.dtype
        # The factor is for token vectors alone, hence before positions are added (Vaswani et al. 2017, 3.4).
        if c.embed_factor != 1:
            x_BTE = x_BTE * jnp.asarray(c.embed_factor, dtype)
        if added := POSITIONS[c.positions].added:
            x_BTE = x_BTE + added(c, positions_BT, width, dtype)
        # A network trained with types always adds a row: without types that of the first sentence.
        if c.types:
            types_BT = jnp.zeros(x_BTE.shape[:2], jnp.int32) if types_BT is None else types_BT
            table = Embed(c.types, width, axis=None, std=c.init, truncate=c.init_truncate, name="types")
            x_BTE = x_BTE + table(types_BT, dtype)
        if c.embed_norm:
            x_BTE = Norm(kind=c.norm, eps=c.eps, bias=c.bias, name="norm")(x_BTE)
        return constrain(dropout(x_BTE, c.dropout, keys_B, c.depth), "batch", "length", None)


def projection(config: Transformer, name: str | None = None) -> Linear | None:
    """Make the layer from tables of another width to the stack; None where the widths are equal."""
    if config.embed_size == config.width:
        return None
    init = config.linear(config.embed_size)
    return Linear((config.embed_size, config.width), (None, "embed"), name=name, **init)


class Transform(nn.Module):
    """Dense layer, activation and norm before the vocabulary, onto the tables' width (Devlin et al. 2019)."""

    config: Transformer

    @nn.compact
    def __call__(self, h_BTD: jax.Array) -> jax.Array:
        c = self.config
        h_BTE = Linear((c.width, c.embed_size), ("embed", None), name="dense", **c.linear(c.width))(h_BTD)
        return Norm(kind=c.norm, eps=c.eps, axis=None, name="norm")(ACTIVATIONS[c.activation][0](h_BTE))


def declare_vocabulary(module: nn.Module, config: Transformer) -> None:
    """Declare the parameters of the vocabulary projection, in a module's setup: an untied table, a bias."""
    if not config.tied:
        module.output = Embed(config.rows, config.width, std=config.head_std, truncate=config.init_truncate)
    if config.head_bias:
        module.bias = module.param("head_bias", named(nn.initializers.zeros, ("vocab",)), (config.rows,))


def vocabulary(module: nn.Module, config: Transformer) -> Head:
    """Return the vocabulary projection of a module with the token table `embed`."""
    table_VE = module.embed.table if config.tied else module.output.table
    check(
        config.transform or table_VE.shape[1] == config.width,
        f"a head of embed={config.embed} on width={config.width}: set transform=True",
    )
    bias_V = module.bias if config.head_bias else None
    return Head(
        table_VD=table_VE, bias_V=bias_V, vocab=config.vocab, scale=config.logit_factor / config.mup, cap=config.logit_cap
    )


def extended(cache: Cache | None, segments_BT: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Return (length of the cache, None: empty or none; segments of the keys: those of the cache, with the new ones)."""
    if cache is None:
        return None, segments_BT
    offset = 0 if cache.length is None else cache.length
    return cache.length, jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, offset))


class Model(nn.Module):
    """A decoder or an encoder: tokens to hidden states, and the head that maps those to logits."""

    config: Transformer

    def setup(self) -> None:
        c = self.config
        self.embed = token_table(c)
        self.input = Inputs(c)
        self.project = projection(c)
        self.stack = Stack(c)
        if c.transform:
            self.last = Transform(c, name="transform")
        declare_vocabulary(self, c)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        *,
        types_BT: jax.Array | None = None,
        prefix_BT: jax.Array | None = None,
        keys_B: jax.Array | None = None,
        cache: Cache | None = None,
        causal: bool = True,
        collect: bool = False,
    ) -> tuple[jax.Array, Cache | jax.Array | None]:
        """Return hidden states (B, T, D) in the compute dtype, and the cache if one was passed.

        `positions_BT` counts within a document, `segments_BT` numbers the documents of a packed row from 1 (0: padding);
        None: every row is one document. `types_BT`: rows of the token-type table. `prefix_BT`: tokens visible to their
        whole segment despite `causal`. `keys_B`, one per row, turn dropout on. `collect`: return the states before and
        after every layer (L + 1, B, T, D) in place of the cache.
        """
        c = self.config
        if self.is_initializing():  # the head has parameters that no hidden state needs
            self.head()
            self.transform(jnp.zeros((1, 1, c.width)))
        if cache is not None and segments_BT is None:
            segments_BT = jnp.ones_like(tokens_BT)

        # With a cache the tokens continue those read before: positions and segments of keys start there.
        start, keys_segments = extended(cache, segments_BT)
        offset = 0 if start is None else start
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(offset + jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)

        # Embeddings, projected where the tables are narrower than the stack (ALBERT).
        x_BTD = self.input(self.embed(tokens_BT, jnp.dtype(c.dtype)), positions_BT, types_BT, keys_B)
        x_BTD = x_BTD if self.project is None else self.project(x_BTD)
        mask = Mask(segments_BT=segments_BT, segments_BS=keys_segments, start=start, prefix_BS=prefix_BT, causal=causal)
        layers = None if cache is None else cache.layers
        h_BTD, layers, states = self.stack(x_BTD, positions_BT, mask, keys_B, layers, collect=collect)
        if collect:
            return h_BTD, jnp.concatenate([x_BTD[None], states])
        if cache is not None:
            length = jnp.asarray(offset + tokens_BT.shape[1], jnp.int32)
            cache = Cache(layers=layers, segments_BS=keys_segments, length=length)
        return h_BTD, cache

    def transform(self, h: jax.Array) -> jax.Array:
        """Prepare states (..., D) for the head; return them as they are unless the config has a transform."""
        return self.last(h) if self.config.transform else h

    def head(self) -> Head:
        return vocabulary(self, self.config)


def empty_cache(config: Transformer, rows: int, length: int, *, stacked: bool = True) -> Cache:
    """Make a cache for `rows` rows of at most `length` tokens; `stacked`: like the layers' parameters."""
    own = (config.kv, length, config.head_size)
    shape = own if rows == 1 and not stacked else (rows, *own)

    def pair(*lead: int) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros((*lead, *shape), config.dtype), jnp.zeros((*lead, *shape), config.dtype)

    return Cache(
        layers=pair(config.depth) if stacked else tuple(pair() for _ in range(config.depth)),
        segments_BS=jnp.zeros((rows, length), jnp.int32),
        length=None,
    )
