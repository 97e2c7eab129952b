"""The one Transformer stack: a config picks norms, positions, feed-forward and attention; published models are presets."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lm.errors import UserError, check_choices, check_range
from lm.models.attention import Attention, Cache, Mask
from lm.models.heads import Head
from lm.models.layers import Embed, dropout, named
from lm.models.mlp import FeedForward
from lm.models.norms import Norm
from lm.models.positions import Rotary, alibi_slopes, buckets, sinusoids
from lm.sharding import constrain

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "swiglu", "geglu", "geglu_tanh", "reglu"]


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Shape and choices of one stack; 0 stands for the usual value derived from the others.

    `windows` is repeated over the layers: (4096, 0) alternates a sliding window with full attention. `mup_base` > 0 turns
    maximal-update parametrisation on (Yang et al. 2022, table 8): the width at which the learning rate was tuned.
    `init_scale_depth` divides the init of residual outputs by sqrt(2 depth) (Radford et al. 2019). `unroll` (0: all)
    trades compile time for speed, `remat` computation for memory; neither changes parameters or results.
    """

    vocab: int = 0  # 0: the tokenizer's size
    pad_vocab: int = 1  # the table's rows are a multiple of this; the extra logits are masked
    context: int = 1024  # longest row, and the size of a learned position table
    width: int = 768
    depth: int = 12
    heads: int = 12
    kv_heads: int = 0  # 0: as many as heads
    head: int = 0  # 0: width / heads
    mlp: int = 0  # 0: 4 x width
    activation: Activation = "gelu_tanh"
    norm: Literal["layer", "rms"] = "layer"
    placement: Literal["pre", "post"] = "pre"
    eps: float = 1e-5
    parallel: bool = False  # attention and feed-forward side by side from one norm
    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "bucket", "none"] = "learned"
    rotary: Rotary = Rotary()
    windows: tuple[int, ...] = (0,)
    bias: bool = True
    qkv_bias: bool | None = None  # None: as bias
    qk_norm: bool = False
    tied: bool = True
    logit_cap: float = 0.0
    attention_cap: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init: float = 0.02
    init_positions: float = 0.01
    init_scale_depth: bool = True
    mup_base: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        check_choices(self)
        check_range(self, 1, float("inf"), "pad_vocab", "context", "width", "depth", "heads")
        check_range(self, 0, float("inf"), "vocab", "kv_heads", "head", "mlp", "unroll", "mup_base")
        check_range(self, 0, 1, "dropout", "attention_dropout")
        check_range(self, 0, float("inf"), "eps", "init", "init_positions", "logit_cap", "attention_cap")
        if not self.head and self.width % self.heads:
            raise UserError(f"width={self.width} does not divide among heads={self.heads}; set head as well")
        if self.heads % self.kv:
            raise UserError(f"heads={self.heads} does not divide among kv_heads={self.kv}")
        if self.positions == "rotary" and int(self.head_size * self.rotary.share) % 2:
            raise UserError(f"rotary positions need an even head size, not {self.head_size} x {self.rotary.share}")
        if self.positions == "rotary" and self.rotary.scaling == "ntk" and int(self.head_size * self.rotary.share) < 4:
            raise UserError("rotary scaling 'ntk' needs more than one pair of each head to turn")
        if self.positions == "sinusoidal" and self.width % 2:
            raise UserError(f"sinusoidal positions need an even width, not {self.width}")
        if self.parallel and self.placement == "post":
            raise UserError("parallel blocks have their norm before: placement='pre'")

    @property
    def head_size(self) -> int:
        return self.head or self.width // self.heads

    @property
    def kv(self) -> int:
        return self.kv_heads or self.heads

    @property
    def mlp_size(self) -> int:
        return self.mlp or 4 * self.width

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        return -(-self.vocab // self.pad_vocab) * self.pad_vocab

    @property
    def mup(self) -> float:
        """Width over the tuned width; 1 without muP."""
        return self.width / self.mup_base if self.mup_base else 1.0

    @property
    def std(self) -> float:
        """Init of the matrices into a layer."""
        return self.init / math.sqrt(self.mup)

    @property
    def out_std(self) -> float:
        """Init of the matrices onto the residual stream."""
        return self.std / math.sqrt(2 * self.depth) if self.init_scale_depth else self.std

    @property
    def attention_scale(self) -> float:
        """1/sqrt(H); under muP proportional to 1/H and equal to it at the tuned width."""
        if not self.mup_base or self.head:
            return self.head_size**-0.5
        return (self.mup_base / self.heads) ** 0.5 / self.head_size


class Block(nn.Module):
    """One layer: attention and feed-forward, each with its norm and residual."""

    config: Transformer

    @nn.compact
    def __call__(self, x_BTD, scanned, shared):
        c, (layer, window, cache) = self.config, scanned
        keys_B = None if shared.keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(shared.keys_B, layer)
        mask = shared.mask if window is None else shared.mask.replace(window=window)
        norms = [Norm(kind=c.norm, eps=c.eps, bias=c.bias, name=f"norm{i}") for i in range(2 - c.parallel)]
        feed = FeedForward(c.width, c.mlp_size, c.activation, c.bias, c.std, c.out_std, name="mlp")

        def attention(y):
            return Attention(c, name="attention")(
                y,
                positions_BT=shared.positions_BT,
                mask=mask,
                bias_NTS=shared.bias,
                keys_B=keys_B,
                cache=cache,
            )

        def drop(y, site):
            return dropout(y, c.dropout, keys_B, site)

        if c.parallel:
            h = norms[0](x_BTD)
            y, cache = attention(h)
            x_BTD = x_BTD + drop(y, 1) + drop(feed(h), 2)
        elif c.placement == "pre":
            y, cache = attention(norms[0](x_BTD))
            x_BTD = x_BTD + drop(y, 1)
            x_BTD = x_BTD + drop(feed(norms[1](x_BTD)), 2)
        else:
            y, cache = attention(x_BTD)
            x_BTD = norms[0](x_BTD + drop(y, 1))
            x_BTD = norms[1](x_BTD + drop(feed(x_BTD), 2))
        return constrain(x_BTD, "batch", "length", None), cache


class Shared(struct.PyTreeNode):
    """What every layer gets alike."""

    positions_BT: jax.Array
    mask: Mask
    keys_B: jax.Array | None = None
    bias: Callable | None = struct.field(pytree_node=False, default=None)


class Stack(nn.Module):
    """The layers, their parameters stacked on a leading axis L, and the last norm.

    Decoding gives each layer's parameters and cache as arrays of their own ("layer0", ...): on a CPU the slice of a
    stack is a copy, which would double the memory that is read for every token.
    """

    config: Transformer

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask, keys_B=None, cache=None):
        c = self.config
        shared = Shared(positions_BT=positions_BT, mask=mask, keys_B=keys_B, bias=self.bias(mask))
        windows = [c.windows[i % len(c.windows)] for i in range(c.depth)] if any(c.windows) else None
        if self.has_variable("params", "layer0"):
            caches = []
            for i in range(c.depth):
                window, layer_cache = windows and windows[i], cache and cache[i]
                x_BTD, layer_cache = Block(c, name=f"layer{i}")(x_BTD, (i, window, layer_cache), shared)
                caches.append(layer_cache)
            return self.last(x_BTD), cache and tuple(caches)
        block = Block
        if c.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        scan = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.depth,
            unroll=c.unroll or c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        layers = jnp.arange(c.depth, dtype=jnp.int32)
        windows = windows and jnp.asarray(windows, jnp.int32)
        x_BTD, cache = scan(c, name="layers")(x_BTD, (layers, windows, cache), shared)
        return self.last(x_BTD), cache

    def last(self, x_BTD):
        """Apply the norm that ends a pre-norm stack."""
        c = self.config
        return Norm(kind=c.norm, eps=c.eps, bias=c.bias, name="norm")(x_BTD) if c.placement == "pre" else x_BTD

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
        table = self.param("buckets", named(nn.initializers.normal(c.init), (None, "heads")), (32, c.heads))
        return lambda queries, keys: table[buckets(relative(queries, keys), causal=mask.causal)].transpose(2, 0, 1)


class Model(nn.Module):
    """Tokens to hidden states, and the head that turns those into logits."""

    config: Transformer

    def setup(self):
        c = self.config
        self.embed = Embed(c.rows, c.width, std=c.init)
        if c.positions == "learned":
            self.places = Embed(c.context, c.width, axis="position", std=c.init_positions)
        self.stack = Stack(c)
        if not c.tied:
            self.output = Embed(c.rows, c.width, std=c.init)

    def __call__(self, tokens_BT, positions_BT=None, segments_BT=None, *, keys_B=None, cache=None, causal=True):
        """Return hidden states (B, T, D) in the compute dtype, and the cache when one was given.

        `positions_BT` counts within a document, `segments_BT` numbers the documents of a packed row from 1 (0: padding);
        None: every row is one document. `keys_B`: one key a row turns dropout on.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        if self.is_initializing():
            self.head()  # an untied head has parameters that no hidden state needs
        start = None if cache is None else cache.length
        offset = 0 if start is None else start
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(offset + jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        x_BTD = self.embed(tokens_BT, dtype)
        if c.positions == "learned":
            x_BTD = x_BTD + self.places(positions_BT, dtype)
        elif c.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(positions_BT, c.width).astype(dtype)
        x_BTD = constrain(dropout(x_BTD, c.dropout, keys_B, c.depth), "batch", "length", None)
        keys_segments = segments_BT
        if cache is not None:
            if segments_BT is None:
                segments_BT = jnp.ones_like(tokens_BT)
            keys_segments = jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, offset))
        mask = Mask(segments_BT=segments_BT, segments_BS=keys_segments, start=start, causal=causal)
        x_BTD, layers = self.stack(x_BTD, positions_BT, mask, keys_B, None if cache is None else cache.layers)
        if cache is not None:
            cache = Cache(layers=layers, segments_BS=keys_segments, length=jnp.asarray(offset + tokens_BT.shape[1], jnp.int32))
        return x_BTD, cache

    def head(self) -> Head:
        """Give the vocabulary projection."""
        c = self.config
        table = self.embed.table if c.tied else self.output.table
        return Head(table_VD=table, vocab=c.vocab, scale=1 / c.mup, cap=c.logit_cap)


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
