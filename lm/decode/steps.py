"""What a decoding loop asks of an architecture, and how the Transformer stacks answer.

A loop knows tokens, states and logits only; what is kept between two steps (here the key-value cache) is a value that it
hands back. Another architecture, a draft model or an encoder-decoder serves every loop by these same functions.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from lm.models.attention import Cache
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Head
from lm.models.model import Model, empty_cache
from lm.models.transformer import Transformer


class Prompts(struct.PyTreeNode):
    """Rows to begin with, int32: left-padded tokens, and an encoder's source, right-padded; segment 0 is padding."""

    tokens_BT: jax.Array
    segments_BT: jax.Array
    source_BS: jax.Array | None = None
    source_segments_BS: jax.Array | None = None

    def places(self) -> tuple[jax.Array, jax.Array]:
        """Count positions from each row's first real token: those of the prompts (B, T) and the next (B,)."""
        width = self.tokens_BT.shape[1]
        pad_B = width - self.segments_BT.sum(1)
        return jnp.maximum(jnp.arange(width) - pad_B[:, None], 0), width - pad_B


class Steps(Protocol):
    """Pure functions of prepared parameters; the object is hashable, a static argument of compiled functions."""

    limit: int | None  # tokens that a row may have, prompt included; None: no bound
    source_limit: int | None  # tokens that a source may have
    rewinds: bool  # `rewind` is there
    complete: bool  # `prefill` gives the states of all tokens, not of the last one only

    def prepare(self, params: Any, rows: int) -> Any:
        """Lay the parameters out for steps of `rows` rows; called once, before the loop."""

    def prefill(self, prepared: Any, prompts: Prompts, room: int) -> tuple[jax.Array, Any]:
        """Read the prompts in one pass; give their states (B, T, D), and a state with room for `room` more tokens.

        The states are ready for `logits`: the last one tells of the first new token.
        """

    def step(self, prepared: Any, state: Any, tokens_BT: jax.Array) -> tuple[jax.Array, Any]:
        """Read more tokens of each row (one, but for scoring and verifying); give their states and the new state."""

    def logits(self, prepared: Any, h: jax.Array) -> jax.Array:
        """Turn states (..., D) into float32 logits (..., V)."""

    def select(self, state: Any, rows_B: jax.Array) -> Any:
        """Give the state whose row i is row `rows_B[i]` of this one: repeated samples, reordered beams."""

    def rewind(self, state: Any, count: jax.Array | int) -> Any:
        """Forget the last `count` tokens of every row."""


class StackState(struct.PyTreeNode):
    """The cache, the position of the next token, counted from each row's first real token, and a source's segments.

    `attention_BS`: where the last token looked in the source, for steps that attend on request.
    """

    cache: Cache
    positions_B: jax.Array
    source_segments_BS: jax.Array | None = None
    attention_BS: jax.Array | None = None


def select(state: StackState, rows_B: jax.Array) -> StackState:
    """Take rows of a state."""
    rows = len(state.positions_B)

    def one(x):  # a single row's keys and values have no axis of rows
        taken = x.reshape(rows, *x.shape[-3:])[rows_B]
        return taken[0] if len(rows_B) == 1 else taken

    cache = state.cache.replace(
        layers=jax.tree.map(one, state.cache.layers), segments_BS=state.cache.segments_BS[rows_B]
    )
    rest = jax.tree.map(lambda x: x[rows_B], state.replace(cache=None))
    return rest.replace(cache=cache)


def rewind(state: StackState, count: jax.Array | int) -> StackState:
    """Take tokens off the end: later keys are not seen, and written over."""
    cache = state.cache.replace(length=state.cache.length - count)
    return state.replace(cache=cache, positions_B=state.positions_B - count)


@dataclass(frozen=True)
class StackSteps:
    """A causal Transformer stack; `prefix`: the tokens of a prompt all see each other."""

    config: Transformer
    prefix: bool = False
    rewinds: ClassVar[bool] = True
    complete: ClassVar[bool] = True
    source_limit: ClassVar[None] = None

    @property
    def limit(self) -> int:
        return self.config.context

    def prepare(self, params, rows):
        return lay_out(self, params, rows == 1, jax.default_backend() == "cpu")

    def lay_out(self, params, arrange):
        return {**params, "stack": arrange(self.config, params["stack"])}, Model(self.config)

    def prefill(self, prepared, prompts, room):
        (rows, width), segments_BT = prompts.tokens_BT.shape, prompts.segments_BT
        cache = empty_cache(self.config, rows, width + room, stacked=False)
        positions_BT, next_B = prompts.places()
        prefix = segments_BT > 0 if self.prefix else None
        inputs, extras = (prompts.tokens_BT, positions_BT, segments_BT), {"prefix_BT": prefix, "cache": cache}
        h_BTD, cache = Model(self.config).apply({"params": prepared.params}, *inputs, **extras)
        return h_BTD, StackState(cache=cache, positions_B=next_B)

    def step(self, prepared, state, tokens_BT):
        count = tokens_BT.shape[1]
        positions_BT = state.positions_B[:, None] + jnp.arange(count)
        variables = {"params": prepared.params}
        h_BTD, cache = Model(self.config).apply(variables, tokens_BT, positions_BT, cache=state.cache)
        return h_BTD, StackState(cache=cache, positions_B=state.positions_B + count)

    def logits(self, prepared, h):
        return prepared.logits(h)

    select = staticmethod(select)
    rewind = staticmethod(rewind)


@dataclass(frozen=True)
class Seq2SeqSteps:
    """A decoder beside an encoder: the source is read once, and its keys and values are kept with the decoder's own.

    `attend` keeps the last layer's attention to the source, the mean of its heads, in the state (coverage penalties).
    """

    config: EncoderDecoder
    attend: bool = False
    rewinds: ClassVar[bool] = True
    complete: ClassVar[bool] = True

    @property
    def limit(self) -> int:
        return self.config.decoder.context

    @property
    def source_limit(self) -> int:
        return self.config.encoder.context

    def prepare(self, params, rows):
        return lay_out(self, params, rows == 1, jax.default_backend() == "cpu")

    def lay_out(self, params, arrange):
        return {**params, "decoder": arrange(self.config.decoder, params["decoder"])}, Seq2Seq(self.config)

    def prefill(self, prepared, prompts, room):
        rows, width = prompts.tokens_BT.shape
        variables, model = {"params": prepared.params}, Seq2Seq(self.config)
        segments_BS = prompts.source_segments_BS
        h_BSD = model.apply(variables, prompts.source_BS, None, segments_BS, method="encode")
        cache = empty_cache(self.config.decoder, rows, width + room, stacked=False)
        positions_BT, next_B = prompts.places()
        cache = cache.replace(layers=tuple((pair, None) for pair in cache.layers))
        row = prompts.tokens_BT, positions_BT, prompts.segments_BT
        h_BTD, cache, attention_BS = self.decode(prepared, row, h_BSD, segments_BS, cache)
        if rows == 1:  # as the decoder's own: without an axis of rows
            cache = cache.replace(layers=tuple((own, jax.tree.map(lambda x: x[0], of)) for own, of in cache.layers))
        return h_BTD, StackState(cache, next_B, segments_BS, attention_BS)

    def step(self, prepared, state, tokens_BT):
        count = tokens_BT.shape[1]
        row = tokens_BT, state.positions_B[:, None] + jnp.arange(count), jnp.ones_like(tokens_BT)
        h_BTD, cache, attention_BS = self.decode(prepared, row, None, state.source_segments_BS, state.cache)
        return h_BTD, state.replace(cache=cache, positions_B=state.positions_B + count, attention_BS=attention_BS)

    def decode(self, prepared, row, h_BSD, segments_BS, cache):
        """Read tokens of the decoder; give states, cache and, where asked for, the last token's attention (B, S)."""
        source = {"source_BSD": h_BSD, "source_segments_BS": segments_BS, "cache": cache, "method": "decode"}
        variables, model = {"params": prepared.params}, Seq2Seq(self.config)
        if not self.attend:
            return *model.apply(variables, *row, **source), None
        (h_BTD, cache), seen = model.apply(variables, *row, **source, mutable=["intermediates"])
        last = seen["intermediates"]["decoder"][f"layer{self.config.decoder.depth - 1}"]
        (weights_BNTS,) = last["cross"]["weights"]
        return h_BTD, cache, weights_BNTS[:, :, -1].mean(1)

    def logits(self, prepared, h):
        return prepared.logits(h)

    select = staticmethod(select)
    rewind = staticmethod(rewind)


class Prepared(struct.PyTreeNode):
    """Parameters with one tree a layer, and the vocabulary projection, whose table may lie as (D, V)."""

    params: Any
    head: Head
    table_DV: jax.Array | None = None

    def logits(self, h: jax.Array) -> jax.Array:
        head = self.head if self.table_DV is None else self.head.replace(table_VD=self.table_DV.T)
        return head.logits(h)


def prepare(steps: StackSteps | Seq2SeqSteps, params: Any, single: bool, cpu: bool) -> Prepared:
    """Take the stacked layers apart and, on a CPU, turn matrices so that XLA's products stream through them.

    A slice of the stack inside the loop would be a copy. A vector goes through a matrix at 51 GB/s when each output's
    weights lie together and at 40 when they do not; for 8 rows it is 15 and 28 (2 cores, float32). Kernels come inputs
    first and the table outputs first, so one row flips the kernels and several flip the table.
    """

    def arrange(config, stack):
        stack = dict(stack)
        layers = stack.pop("layers")
        for i in range(config.depth):
            layer = layers if config.share else jax.tree.map(lambda x, i=i: x[i], layers)
            stack[f"layer{i}"] = flip(layer) if cpu and single else layer
        return stack

    laid, model = steps.lay_out(params, arrange)
    head = model.apply({"params": params}, method="head")
    prepared = Prepared(params=laid, head=head)
    return prepared.replace(table_DV=head.table_VD.T) if cpu and not single else prepared


def flip(tree: Any, name: str = "") -> Any:
    """Replace every kernel by "flipped", the matrix (outputs, inputs); the attention's output has two input axes."""
    if not isinstance(tree, dict):
        return tree
    tree = {key: flip(x, key) for key, x in tree.items()}
    if "kernel" in tree:
        kernel = tree.pop("kernel")
        tree["flipped"] = kernel.reshape(math.prod(kernel.shape[: 2 if name == "out" else 1]), -1).T
    return tree


lay_out = jax.jit(prepare, static_argnums=(0, 2, 3))
