"""Transformer-XL (Dai et al. 2019): a segment attends to the hidden states of earlier ones, by relative positions."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lm.errors import check, check_choices, check_range
from lm.models.adaptive import Adaptive, AdaptiveHead, Order
from lm.models.attend import kept_weights, masked, seeds, weighted_values
from lm.models.layers import Linear, dropout, fold, named, repeat
from lm.models.norms import normalise
from lm.models.products import multiply
from lm.models.relative import by_products, distances, in_pieces, relative_scores, shift
from lm.models.shape import Shape
from lm.sharding import constrain


@dataclass(frozen=True, kw_only=True)
class TransformerXL(Shape):
    """Sizes and choices of a Transformer-XL; a size of 0 stands for the usual value derived from the others.

    A segment of `context` tokens attends to `memory` tokens before it; before the first segment that is "nothing", or
    "zeros" that take part in the softmax (`begin`). `clamp` > 0: distances are clipped. `same_length`: every query has
    exactly `memory` keys, itself included, however far back the memory reaches (evaluation). `cutoffs`, `divide` (the
    paper's div_val), `tied_projections` (one per cluster; empty: all but the first) and `order` belong to the adaptive
    vocabulary: see `lm.models.adaptive`.
    """

    vocab: int = 0  # 0: the tokenizer's size
    pad_vocab: int = 1  # tables have a multiple of so many rows
    context: int = 128
    memory: int = 128
    width: int = 512
    depth: int = 12
    heads: int = 8
    head: int = 0  # 0: width / heads
    mlp: int = 0  # 0: 4 x width
    embed: int = 0  # width of the token tables; 0: width
    cutoffs: tuple[int, ...] = ()
    divide: int = 1
    tied_projections: tuple[bool, ...] = ()
    order: Order = "rising"
    placement: Literal["pre", "post"] = "post"
    eps: float = 1e-5
    shared_biases: bool = False  # one u and v for all layers (the paper's; the released code's untie_r turns it off)
    clamp: int = 0
    same_length: bool = False
    begin: Literal["nothing", "zeros"] = "nothing"
    dropout: float = 0.0  # of embeddings, of each sublayer, inside the feed-forward, of the last hidden state
    attention_dropout: float = 0.0
    position_dropout: float = 0.0  # of the sinusoids
    init: float = 0.02
    init_projections: float = 0.01  # standard deviation of the projections of adaptive embeddings
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1
    remat: Literal["none", "dots", "full"] = "none"
    pipeline_batches: int = 0  # micro-batches through the stages of the mesh; 0: two a stage

    def __post_init__(self):
        check_choices(self)
        check_range(self, 1, float("inf"), "pad_vocab", "context", "width", "depth", "heads", "divide")
        check_range(self, 0, float("inf"), "vocab", "memory", "head", "mlp", "embed", "clamp", "unroll", "eps")
        check_range(self, 0, float("inf"), "init", "init_projections")
        check_range(self, 0, 1, "dropout", "attention_dropout", "position_dropout")
        check(self.width % 2 == 0, f"width={self.width} must be even: half of each sinusoid are sines")
        self.check_heads()
        rising = all(a < b for a, b in zip((0, *self.cutoffs), self.cutoffs))
        check(rising, f"cutoffs={self.cutoffs} must rise, from above 0")
        check(
            not self.vocab or not self.cutoffs or self.cutoffs[-1] < self.vocab,
            f"cutoffs={self.cutoffs} must lie below the vocabulary's size of {self.vocab}",
        )
        clusters = len(self.cutoffs) + 1
        check(
            len(self.tied_projections) in (0, clusters),
            f"tied_projections={self.tied_projections}: name one for each of the {clusters} clusters, or none",
        )
        smallest = self.embed_size // self.divide ** len(self.cutoffs)
        check(smallest > 0, f"divide={self.divide} leaves nothing of the embedding for the last of {clusters} clusters")

    @property
    def ties(self) -> tuple[bool, ...]:
        """Whether input and output share a projection, for each cluster."""
        return self.tied_projections or (False, *[True] * len(self.cutoffs))

    def adaptive(self) -> Adaptive:
        """Make the module of the adaptive embedding and softmax."""
        return Adaptive(
            vocab=self.vocab, width=self.width, embed=self.embed_size, cutoffs=self.cutoffs, divide=self.divide, tied=self.ties,
            order=self.order, rows_multiple=self.pad_vocab, std=self.init, project_std=self.init_projections,
        )  # fmt: skip


class Memory(struct.PyTreeNode):
    """Recurrence from a row to the next: the input of each layer at the last M tokens.

    `seen_BM`: the token belongs to the document in which the row ended; other slots are masked. Before the first segment
    all are, as in the authors' PyTorch release; the memory of their TensorFlow release and of Hugging Face starts with
    unmasked zeros (begin="zeros"). Both carry the last layer's output too, which is never read: it is left out here.
    """

    hidden_BLMD: jax.Array
    seen_BM: jax.Array


def empty_memory(config: TransformerXL, rows: int) -> Memory | None:
    """Make the memory before the first segment; None where the config has none."""
    if not config.memory:
        return None
    hidden = jnp.zeros((rows, config.depth, config.memory, config.width), config.dtype)
    return Memory(hidden_BLMD=hidden, seen_BM=jnp.full((rows, config.memory), config.begin == "zeros"))


def allowed(documents_BS: jax.Array, length: int, same_length: bool) -> jax.Array:
    """Return the attention mask, bool (B, T, S): a query attends to its document up to itself.

    The last `length` keys are the queries' own. With `same_length` only keys less than S - T back: the memory's length.
    """
    keys = documents_BS.shape[1]
    back = jnp.arange(keys - length, keys)[:, None] - jnp.arange(keys)[None]
    seen = back >= 0
    if same_length and keys > length:
        seen &= back < keys - length
    document_BT1 = documents_BS[:, keys - length :, None]
    return seen & (document_BT1 == documents_BS[:, None]) & (document_BT1 != 0)


class LayerNorm(nn.Module):
    """Layer normalisation whose scales start at N(1, std), as the released code's do."""

    eps: float
    std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def spread(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return 1 + self.std * jax.random.normal(key, shape, dtype)

        scale = self.param("scale", named(spread, ("embed",)), x.shape[-1:])
        shift = self.param("bias", named(nn.initializers.zeros, ("embed",)), x.shape[-1:])
        return normalise(x, scale, shift, True, self.eps)


class RelativeAttention(nn.Module):
    """Scores [(q + u) . k + (q + v) . r] / sqrt(H): u and v weigh contents k and distances r independently of the query."""

    config: TransformerXL

    @nn.compact
    def __call__(self, x_BTD: jax.Array, memory_BMD: jax.Array | None, shared: "Shared") -> jax.Array:
        """Attend from x to [memory; x]: (B, T, D)."""
        c, length = self.config, x_BTD.shape[1]
        from_BSD = jnp.concatenate([memory_BMD, x_BTD], 1) if memory_BMD is not None else x_BTD

        def heads(name: str, y: jax.Array) -> jax.Array:
            shape, axes = (c.width, c.heads, c.head_size), ("embed", "heads", "head")
            return Linear(shape, axes, bias=False, std=c.init, name=name)(y)

        q_BTNH = heads("query", x_BTD)
        u_NH, v_NH = (y.astype(q_BTNH.dtype) for y in shared.biases or relative_biases(self, c))
        # Every device needs all the keys of its rows: the context axis gathers them here.
        k_BSNH, v_BSNH = (constrain(heads(n, from_BSD), "batch", None, "heads", None) for n in ("key", "value"))
        # Content and position scores differ in the bias on the queries only; both are scaled before the products.
        k_BNSH, v_BNSH = k_BSNH.swapaxes(1, 2), v_BSNH.swapaxes(1, 2)
        q_BNTH, p_BNTH = (
            constrain(((q_BTNH + b) * c.head_size**-0.5).swapaxes(1, 2), "batch", "heads", "length", None) for b in (u_NH, v_NH)
        )
        r_RNH, keys = heads("position", shared.places), from_BSD.shape[1]
        r_BNRH = (r_RNH if r_RNH.ndim == 4 else r_RNH[None]).swapaxes(1, 2)

        def some(q_BNTH: jax.Array, p_BNTH: jax.Array, allowed_B1TS: jax.Array, numbers_T: jax.Array) -> jax.Array:
            scores = multiply("bnth,bnsh->bnts", q_BNTH, k_BNSH)
            if len(numbers_T) == length:
                # The shift moves entries between rows, so a device needs whole rows of queries.
                by_distance = constrain(by_products(p_BNTH, r_BNRH), "batch", "heads", None, None)
                scores = scores + shift(by_distance, keys)
            else:  # a column before the first distance, and as many behind the last as a piece has queries
                r = jnp.pad(r_BNRH, ((0, 0), (0, 0), (1, length - 1), (0, 0)))
                scores = scores + relative_scores(p_BNTH, r, None, numbers_T, length, keys)
            kept = kept_weights(seeds(shared.keys_B), c.attention_dropout, c.heads, numbers_T, jnp.arange(keys))
            return weighted_values(masked(scores, allowed_B1TS[:, 0]), v_BNSH, kept)

        queries = (q_BNTH, p_BNTH, shared.allowed_BTS[:, None], jnp.arange(length))
        y_BTNH = in_pieces(some, queries, keys).swapaxes(1, 2)
        out = (c.heads, c.head_size, c.width), ("heads", "head", "embed")
        return Linear(*out, inputs=2, bias=False, std=c.init, name="out")(y_BTNH.reshape(-1, length, *out[0][:2]))


def relative_biases(module: nn.Module, c: TransformerXL) -> tuple[jax.Array, jax.Array]:
    """Declare u and v, (N, H) each, as parameters of a module."""
    init = named(nn.initializers.normal(c.init), ("heads", "head"))
    content, position = (module.param(f"{name}_bias", init, (c.heads, c.head_size)) for name in ("content", "position"))
    return content, position


class Shared(struct.PyTreeNode):
    """Arguments that are the same for every layer."""

    allowed_BTS: jax.Array
    distances_SD: jax.Array | None = None  # sinusoids, the same for all rows
    distances_BSD: jax.Array | None = None  # with dropout
    text_BT: jax.Array | None = None  # False in the padding before a text: zeros in every layer
    keys_B: jax.Array | None = None
    biases: Any = None  # u and v, where all layers have the same

    @property
    def places(self) -> jax.Array:
        return self.distances_SD if self.distances_BSD is None else self.distances_BSD


class Layer(nn.Module):
    """Attention and a ReLU feed-forward, each with norm and residual; also returns its input, for the memory."""

    config: TransformerXL

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, scanned: tuple[jax.Array, jax.Array | None], shared: Shared
    ) -> tuple[jax.Array, jax.Array]:
        c, (layer, memory_BMD) = self.config, scanned
        x_BTD = kept_BTD = x_BTD if shared.text_BT is None else jnp.where(shared.text_BT[..., None], x_BTD, 0)
        shared = shared.replace(keys_B=fold(shared.keys_B, layer))
        norms = [LayerNorm(c.eps, c.init, name=f"norm{i}") for i in range(2)]
        attend = RelativeAttention(c, name="attention")

        def drop(y: jax.Array, site: int) -> jax.Array:
            return dropout(y, c.dropout, shared.keys_B, site)

        def feed(y: jax.Array) -> jax.Array:
            shape, axes = (c.width, c.mlp_size), ("embed", "mlp")
            y = drop(nn.relu(Linear(shape, axes, std=c.init, name="up")(y)), 3)
            return Linear(shape[::-1], axes[::-1], std=c.init, name="down")(y)

        if c.placement == "pre":
            # The memory holds inputs of the layer before their norm.
            before = None if memory_BMD is None else norms[0](memory_BMD)
            x_BTD = x_BTD + drop(attend(norms[0](x_BTD), before, shared), 1)
            x_BTD = x_BTD + drop(feed(norms[1](x_BTD)), 2)
        else:
            x_BTD = norms[0](x_BTD + drop(attend(x_BTD, memory_BMD, shared), 1))
            x_BTD = norms[1](x_BTD + drop(feed(x_BTD), 2))
        return constrain(x_BTD, "batch", "length", None), kept_BTD


class MemoryModel(nn.Module):
    """Tokens and a memory to hidden states and the next memory; and the softmax over the vocabulary."""

    config: TransformerXL

    def setup(self) -> None:
        c = self.config
        self.embed = c.adaptive()
        self.layers = repeat(Layer, c, remat=c.remat, unroll=c.unroll)(c)
        self.biases = relative_biases(self, c) if c.shared_biases else None

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        memory: Memory | None = None,
        *,
        fresh: bool = False,
        keys_B: jax.Array | None = None,
    ) -> tuple[jax.Array, Memory | None]:
        """Return hidden states (B, T, D) and the memory after this row, None where none was passed.

        `segments_BT` numbers the documents of a row: 1 continues the row before and attends to its memory, 2 and more
        start here, 0 is padding; None: all 1. The memory, of any length, has no gradient. `fresh`: it is empty and the
        row is padded on the left; with begin="zeros" the attended zeros then reach up to the text.
        """
        c, dtype, length = self.config, jnp.dtype(self.config.dtype), tokens_BT.shape[1]
        if self.is_initializing():
            self.embed.head()

        # The memory's tokens stand before the row's, as keys: those of the open document belong to document 1.
        documents_BS = jnp.ones_like(tokens_BT) if segments_BT is None else segments_BT
        hidden_LBMD = None
        if memory is not None:
            memory = jax.lax.stop_gradient(memory)
            hidden_LBMD = memory.hidden_BLMD.swapaxes(0, 1).astype(dtype)
            documents_BS = jnp.concatenate([memory.seen_BM.astype(documents_BS.dtype), documents_BS], 1)
        keys, text_BT = documents_BS.shape[1], None
        if fresh and memory is not None and c.begin == "zeros":
            text_BT = segments_BT > 0
            documents_BS = (jnp.arange(keys) >= length - text_BT.sum(1, keepdims=True)).astype(documents_BS.dtype)

        # One table of sinusoids by distance serves all rows; dropout of it makes one per row.
        places_SD, places_BSD = distances(keys - 1, 0, c.width, c.clamp).astype(dtype), None
        if keys_B is not None and c.position_dropout:
            places_BSD = jnp.broadcast_to(places_SD, (tokens_BT.shape[0], *places_SD.shape))
            places_BSD = dropout(places_BSD, c.position_dropout, fold(keys_B, c.depth), 1)

        seen_BTS = allowed(documents_BS, length, c.same_length)
        shared = Shared(seen_BTS, places_SD, places_BSD, text_BT, keys_B, self.biases)
        # Embeddings times sqrt(D), as in Vaswani et al. 2017, 3.4, and the released code.
        x_BTD = dropout(self.embed(tokens_BT, dtype) * c.width**0.5, c.dropout, fold(keys_B, c.depth), 0)
        x_BTD = constrain(x_BTD, "batch", "length", None)
        x_BTD, kept_LBTD = self.layers(x_BTD, (jnp.arange(c.depth, dtype=jnp.int32), hidden_LBMD), shared)
        if memory is not None:
            memory = next_memory(memory, kept_LBTD, documents_BS)
        return dropout(x_BTD, c.dropout, fold(keys_B, c.depth), 2), memory

    def head(self) -> AdaptiveHead:
        """Return the softmax over the vocabulary."""
        return self.embed.head()


def next_memory(memory: Memory, kept_LBTD: jax.Array, documents_BS: jax.Array) -> Memory:
    """Append the row's states, keep the last M, and mask positions that belong to earlier documents."""
    # No gradient flows into earlier segments (Dai et al. 2019, 3.2): it would need their activations.
    size = memory.seen_BM.shape[1]
    new_BLTD = kept_LBTD[:, :, -size:].swapaxes(0, 1).astype(memory.hidden_BLMD.dtype)
    hidden = jnp.concatenate([memory.hidden_BLMD, new_BLTD], 2)[:, :, -size:]
    seen = (documents_BS == documents_BS[:, -1:]) & (documents_BS != 0)
    return jax.lax.stop_gradient(Memory(hidden_BLMD=hidden, seen_BM=seen[:, -size:]))
