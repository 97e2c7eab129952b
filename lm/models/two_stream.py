"""XLNet's network: a content stream and a query stream over one set of weights, with relative attention and a memory.

Yang et al. 2019, https://github.com/zihangdai/xlnet. The content stream reads the tokens; the query stream starts from
one learned vector at each predicted position and attends to the content of other positions only, so that it knows its
position but not its token.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lm.errors import check, check_choices, check_range, unknown
from lm.models.attend import kept_weights, masked, seeds, weighted_values
from lm.models.heads import Head
from lm.models.layers import Embed, Linear, dropout, fold, named, repeat
from lm.models.lora import Lora
from lm.models.mlp import ACTIVATIONS, FeedForward
from lm.models.norms import Norm
from lm.models.products import multiply
from lm.models.relative import distances, in_pieces, relative_scores
from lm.models.shape import Shape
from lm.sharding import constrain, pieces


@dataclass(frozen=True, kw_only=True)
class XLNet(Shape):
    """Sizes of the two-stream network; a size of 0 stands for the usual value derived from the others.

    `memory`: number of layer inputs of earlier rows that are attended to as well; distances are clipped to `clamp` (0:
    off). The release drops out position embeddings too; here they are projected once for all rows, without dropout.
    """

    vocab: int = 0  # 0: the tokenizer's size
    pad_vocab: int = 1  # the table's rows are a multiple of this; the extra logits are masked
    context: int = 512
    memory: int = 384
    width: int = 768
    depth: int = 12
    heads: int = 12
    head: int = 0  # 0: width / heads
    mlp: int = 0  # 0: 4 x width
    activation: str = "gelu_tanh"  # as the release; transformers runs its weights with the exact "gelu"
    eps: float = 1e-12
    clamp: int = 0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init: float = 0.02
    lora: Lora = Lora()
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1
    remat: Literal["none", "full"] = "none"
    pipeline_batches: int = 0  # micro-batches through the stages of the mesh; 0: two a stage

    def __post_init__(self):
        check_choices(self)
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, list(ACTIVATIONS))
        check_range(self, 1, float("inf"), "pad_vocab", "context", "width", "depth", "heads")
        check_range(self, 0, float("inf"), "vocab", "memory", "head", "mlp", "clamp", "unroll", "eps", "init")
        check_range(self, 0, 1, "dropout", "attention_dropout")
        self.check_heads()
        check(self.width % 2 == 0, f"sinusoids of distances need an even width, not {self.width}")

    # Read by `FeedForward`.
    bias = property(lambda self: True)
    mlp_dropout = property(lambda self: self.dropout)

    def linear(self, inputs: int, *, out: bool = False, query: bool = False) -> dict[str, Any]:
        """Return the init of a matrix, as arguments of `Linear`: one normal distribution, whatever the inputs."""
        return {"std": self.init}


class Shared(struct.PyTreeNode):
    """Arguments that are the same for every layer; the S keys are M of the memory and T of the row.

    A query attends to the keys whose rank is below its reach. `types` choose between the two segment vectors.
    `distances_ZRD`: embeddings of distances M + T, ..., -T + 1, in reading order and (Z = 2) against it.
    """

    rank_BS: jax.Array
    reach_BT: jax.Array
    types_BS: jax.Array
    distances_ZRD: jax.Array
    backward_B: jax.Array | None = None
    places_BP: jax.Array | None = None
    keys_B: jax.Array | None = None
    reuse: int = struct.field(pytree_node=False, default=0)


class RelativeAttention(nn.Module):
    """Attention of the content (T queries) and of the query stream (P) to the memory and the content (S = M + T keys)."""

    config: XLNet

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, g_BPD: jax.Array | None, memory_BMD: jax.Array | None, shared: Shared, keys_B: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        c, length = self.config, x_BTD.shape[1]
        kernel: dict[str, Any] = {"shape": (c.width, c.heads, c.head_size), "axes": ("embed", "heads", "head")}
        kernel |= {"bias": False, "std": c.init, "lora": c.lora}
        query = Linear(name="query", **kernel)

        # Keys and values are content only, of the memory and of the row; both streams share them.
        content_BSD = x_BTD
        if memory_BMD is not None:
            content_BSD = jnp.concatenate([memory_BMD.astype(x_BTD.dtype), x_BTD], 1)
        k_BNSH, v_BNSH = (Linear(name=name, **kernel)(content_BSD, keys_B).swapaxes(1, 2) for name in ("key", "value"))

        # Distances are projected once for the batch; a row written backwards takes the second set.
        r_ZNRH = Linear(name="position", **kernel)(shared.distances_ZRD.astype(x_BTD.dtype)).swapaxes(1, 2)
        r_BNRH = r_ZNRH
        if shared.backward_B is not None:
            r_BNRH = jnp.where(shared.backward_B[:, None, None, None] != 0, r_ZNRH[1], r_ZNRH[0])
        k_BNSH, v_BNSH = (constrain(y, "batch", "heads", None, None) for y in (k_BNSH, v_BNSH))

        def vector(name: str, *lead: int) -> jax.Array:
            init = named(nn.initializers.normal(c.init), (*[None] * len(lead), "heads", "head"))
            return self.param(name, init, (*lead, c.heads, c.head_size)).astype(x_BTD.dtype)

        biases = [vector(f"{name}_bias")[:, None] for name in ("content", "position", "segment")]
        segments_2NH = vector("segments", 2)
        sides = Sides(k_BNSH, v_BNSH, r_BNRH, segments_2NH, shared)
        out = (c.heads, c.head_size, c.width), ("heads", "head", "embed")
        last = Linear(*out, inputs=2, bias=False, std=c.init, lora=c.lora, name="out")

        def stream(x: jax.Array, places_BP: jax.Array | None, site: int) -> jax.Array:
            own = fold(keys_B, site)
            q_BNTH = constrain(query(x, own).swapaxes(1, 2), "batch", "heads", "length", None)
            queries = tuple((q_BNTH + bias) * c.head_size**-0.5 for bias in biases)
            numbers_T = jnp.arange(x.shape[1])

            def some(queries: Any, places_BP: jax.Array | None, numbers_T: jax.Array) -> jax.Array:
                kept = kept_weights(seeds(own), c.attention_dropout, c.heads, numbers_T, jnp.arange(k_BNSH.shape[2]))
                return sides.attend(queries, places_BP, numbers_T, kept)

            y_BNTH = in_pieces(some, (queries, places_BP, numbers_T), max(length, k_BNSH.shape[2]))
            return last(y_BNTH.swapaxes(1, 2), own)

        # The streams' dropout has sites of its own.
        g_BPD = None if g_BPD is None else stream(g_BPD, shared.places_BP, 4)
        return stream(x_BTD, None, 0), g_BPD


class Sides(NamedTuple):
    """The targets of both streams' attention: keys, values, projected distances, the two segment vectors."""

    k_BNSH: jax.Array
    v_BNSH: jax.Array
    r_BNRH: jax.Array
    segments_2NH: jax.Array
    shared: Shared

    def attend(
        self,
        queries: tuple[jax.Array, jax.Array, jax.Array],
        places_BP: jax.Array | None,
        numbers_T: jax.Array,
        kept_BNTS: jax.Array | None,
    ) -> jax.Array:
        """Attend with queries (B, N, T, H) for content, distance and segment: (B, N, T, H).

        `places_BP`: their positions in the row; None: they are content, at positions `numbers_T`, neighbours.
        """
        shared, (content, position, segment) = self.shared, queries
        length, keys = shared.reach_BT.shape[1], self.k_BNSH.shape[2]
        # Three scores: with the key's content, with its distance, and whether both tokens are of one segment.
        scores = multiply("bnth,bnsh->bnts", content, self.k_BNSH)
        scores += relative_scores(position, self.r_BNRH, places_BP, numbers_T, length, keys)
        same, other = multiply("bnth,znh->zbnt", segment, self.segments_2NH)

        def here(values_BT: jax.Array) -> jax.Array:
            if places_BP is not None:
                return jnp.take_along_axis(values_BT, places_BP, 1, mode="clip")[..., None]
            return jax.lax.dynamic_slice_in_dim(values_BT, numbers_T[0], len(numbers_T), 1)[..., None]

        one_segment = here(shared.types_BS[:, -length:]) == shared.types_BS[:, None]
        scores += jnp.where(one_segment[:, None], same[..., None], other[..., None])
        allowed_BTS = here(shared.reach_BT) > shared.rank_BS[:, None]
        if places_BP is None:  # content attends to itself
            allowed_BTS |= numbers_T[:, None] + keys - length == np.arange(keys)
        y_BNTH = weighted_values(masked(scores, allowed_BTS), self.v_BNSH, kept_BNTS)
        # A fully masked query would otherwise return the mean of the values that are hidden from it.
        return jnp.where(allowed_BTS.any(-1)[:, None, :, None], y_BNTH, 0)


class Block(nn.Module):
    """One layer of both streams: attention and feed-forward, each with residual and norm after it."""

    config: XLNet

    @nn.compact
    def __call__(
        self, streams: tuple[jax.Array, jax.Array | None], scanned: tuple[jax.Array, jax.Array | None], shared: Shared
    ) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array | None]:
        c, (layer, memory_BMD) = self.config, scanned
        keys_B = fold(shared.keys_B, layer)
        norms, feed = [Norm(eps=c.eps, name=f"norm{i}") for i in range(2)], FeedForward(c, name="mlp")
        attended = RelativeAttention(c, name="attention")(*streams, memory_BMD, shared, keys_B)
        # The content stream's input only: a query state stands for a guess, not for a token.
        next_BMD = remember(memory_BMD, streams[0][:, : shared.reuse])

        def after(x: jax.Array, y: jax.Array, own_B: jax.Array | None) -> jax.Array:
            x = norms[0](x + dropout(y, c.dropout, own_B, 1))
            x = norms[1](x + dropout(feed(x, own_B), c.dropout, own_B, 2))
            return constrain(x, "batch", "length", None)

        (x_BTD, g_BPD), (y_BTD, z_BPD) = streams, attended
        g_BPD = None if g_BPD is None or z_BPD is None else after(g_BPD, z_BPD, fold(keys_B, 9))
        return (after(x_BTD, y_BTD, keys_B), g_BPD), next_BMD


def remember(memory_BMD: jax.Array | None, new_BTD: jax.Array) -> jax.Array | None:
    """Append layer inputs to a layer's memory and keep the last M; None stays None."""
    if memory_BMD is None:
        return None
    kept = jnp.concatenate([memory_BMD, new_BTD.astype(memory_BMD.dtype)], 1)[:, -memory_BMD.shape[1] :]
    return jax.lax.stop_gradient(kept)


class Layers(nn.Module):
    """All layers, their parameters stacked on a leading axis L; in the memory L comes after the rows."""

    config: XLNet

    @nn.compact
    def __call__(
        self, streams: tuple[jax.Array, jax.Array | None], memory_BLMD: jax.Array | None, shared: Shared
    ) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array | None]:
        c = self.config
        scan = repeat(Block, c, in_axes=((0, 1), nn.broadcast), out_axes=1, remat=c.remat, unroll=c.unroll)
        numbers = jnp.arange(c.depth, dtype=jnp.int32)
        return scan(c, name="layers")(streams, (numbers, memory_BLMD), shared)


class TwoStream(nn.Module):
    """Tokens to content states and, at the predicted positions, query states; and the head for either."""

    config: XLNet

    def setup(self) -> None:
        c = self.config
        self.embed = Embed(c.rows, c.width, std=c.init)
        self.query = self.param("query", named(nn.initializers.normal(c.init), ("embed",)), (c.width,))
        self.stack = Layers(c)
        self.bias = self.param("head_bias", named(nn.initializers.zeros, ("vocab",)), (c.rows,))

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        types_BT: jax.Array | None = None,
        rank_BT: jax.Array | None = None,
        reach_BT: jax.Array | None = None,
        places_BP: jax.Array | None = None,
        backward_B: jax.Array | None = None,
        memory_BLMD: jax.Array | None = None,
        reuse: int = 0,
        keys_B: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Return content states (B, T, D), query states (B, P, D) or None, and the memory of the next row.

        A query, of either stream, attends to the keys with `rank` below its `reach`, content also to itself; without
        ranks attention is full. `places_BP`: predicted positions. `backward_B`: 1 where the row is written against
        reading order. The first `reuse` tokens (0: all) go into the memory, visible to all queries and of type 0.
        `keys_B`, one per row, turn dropout on.
        """
        c, (rows, length) = self.config, tokens_BT.shape
        dtype = jnp.dtype(c.dtype)
        x_BTD, g_BPD = dropout(self.embed(tokens_BT, dtype), c.dropout, keys_B, c.depth), None
        count = 0 if places_BP is None else places_BP.shape[1]
        if places_BP is not None:
            # A multiple of the devices that cut rows; what is added predicts nothing.
            places_BP = jnp.pad(places_BP, ((0, 0), (0, -count % pieces("length")[0])))
            g_BPD = jnp.broadcast_to(self.query.astype(dtype), (*places_BP.shape, c.width))
            g_BPD = constrain(dropout(g_BPD, c.dropout, keys_B, c.depth + 2), "batch", "length", None)
        x_BTD = constrain(x_BTD, "batch", "length", None)

        # Without ranks every key has rank 0 and every query reach 1; the memory's ranks lie below any reach.
        memory = 0 if memory_BLMD is None else memory_BLMD.shape[2]
        zeros_BT = jnp.zeros((rows, length), jnp.int32)
        rank_BT = zeros_BT if rank_BT is None else rank_BT
        before = ((0, 0), (memory, 0))
        shared = Shared(
            rank_BS=jnp.pad(rank_BT, before, constant_values=np.iinfo(np.int32).min),
            reach_BT=zeros_BT + 1 if reach_BT is None else reach_BT,
            types_BS=jnp.pad(zeros_BT if types_BT is None else types_BT, before),
            distances_ZRD=directions(memory, length, c, backward_B is not None),
            backward_B=backward_B,
            places_BP=places_BP,
            keys_B=keys_B,
            reuse=reuse or length,
        )
        (x_BTD, g_BPD), memory_BLMD = self.stack((x_BTD, g_BPD), memory_BLMD, shared)
        x_BTD = dropout(x_BTD, c.dropout, keys_B, c.depth + 1)
        if g_BPD is not None:
            g_BPD = dropout(g_BPD, c.dropout, keys_B, c.depth + 3)[:, :count]
        return x_BTD, g_BPD, memory_BLMD

    def head(self) -> Head:
        """Return the vocabulary projection: the token table and a bias."""
        return Head(table_VD=self.embed.table, bias_V=self.bias, vocab=self.config.vocab)


def directions(memory: int, length: int, config: XLNet, both: bool) -> jax.Array:
    """Embed the distances M + T, ..., -T + 1, and with `both` also their negatives: (Z, R, D)."""
    forward_RD = distances(memory + length, 1 - length, config.width, config.clamp)
    if not both:
        return forward_RD[None]
    sin, cos = jnp.split(forward_RD, 2, -1)  # of -d: -sin(d), cos(d)
    return jnp.stack([forward_RD, jnp.concatenate([-sin, cos], -1)])
