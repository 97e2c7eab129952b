"""Decoding steps: the interface between the decoding loops and the architectures, and that of the Transformer stacks.

A loop sees tokens, hidden states and logits only; the state between two steps (here a key-value cache) is a value that it
passes back. So every loop serves every architecture, draft models and encoder-decoders included.
"""

import math
from collections.abc import Callable
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
    """A batch of prompts, int32: left-padded tokens, and an encoder's right-padded source; segment 0 is padding."""

    tokens_BT: jax.Array
    segments_BT: jax.Array
    source_BS: jax.Array | None = None
    source_segments_BS: jax.Array | None = None

    def positions(self) -> tuple[jax.Array, jax.Array]:
        """Count positions from each row's first real token: of the prompts (B, T) and of the next token (B,)."""
        width = self.tokens_BT.shape[1]
        pad_B = width - self.segments_BT.sum(1)
        return jnp.maximum(jnp.arange(width) - pad_B[:, None], 0), width - pad_B


class Steps(Protocol):
    """Pure functions of prepared parameters; the object is hashable, a static argument of compiled functions."""

    rewinds: ClassVar[bool]  # has `rewind`
    complete: ClassVar[bool]  # `prefill` returns the states of all tokens, not of the last one only

    @property
    def config(self) -> Any: ...

    @property
    def limit(self) -> int | None:
        """Tokens of a row, prompt included; None: unbounded."""

    @property
    def source_limit(self) -> int | None:
        """Tokens of a source."""

    def prepare(self, params: Any, rows: int) -> "Prepared":
        """Lay the parameters out for steps of `rows` rows; called once, before the loop."""

    def prefill(self, prepared: "Prepared", prompts: Prompts, room: int) -> tuple[jax.Array, Any]:
        """Read the prompts in one pass; return hidden states (B, T, D) and a state with capacity for `room` more tokens.

        `logits` takes the hidden states; the last one predicts the first new token.
        """

    def step(self, prepared: "Prepared", state: Any, tokens_BT: jax.Array) -> tuple[jax.Array, Any]:
        """Read more tokens of each row (one, except for scoring and verifying); return hidden states and the new state."""

    def logits(self, prepared: "Prepared", h: jax.Array) -> jax.Array:
        """Turn hidden states (..., D) into float32 logits (..., V)."""

    def select(self, state: Any, rows_B: jax.Array) -> Any:
        """Return the state whose row i is row `rows_B[i]` of this one: repeated samples, reordered beams."""

    def rewind(self, state: Any, count: jax.Array | int) -> Any:
        """Forget the last `count` tokens of every row."""


class Prepared(struct.PyTreeNode):
    """Parameters, for the stacks one tree a layer, and the vocabulary projection, whose table may lie as (D, V)."""

    params: Any
    head: Head
    table_DV: jax.Array | None = None

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params}

    def logits(self, h: jax.Array) -> jax.Array:
        head = self.head if self.table_DV is None else self.head.replace(table_VD=self.table_DV.T)
        return head.logits(h)


class StackState(struct.PyTreeNode):
    """The cache, the position of the next token, counted from each row's first real token, and a source's segments.

    `attention_BS`: the last token's attention to the source, for steps that keep it.
    """

    cache: Cache
    positions_B: jax.Array
    source_segments_BS: jax.Array | None = None
    attention_BS: jax.Array | None = None


class CachedSteps:
    """Functions that every stack with a key-value cache shares."""

    rewinds: ClassVar[bool] = True
    complete: ClassVar[bool] = True

    def prepare(self, params: Any, rows: int) -> Prepared:
        return lay_out(self, params, rows == 1, jax.default_backend() == "cpu")

    def logits(self, prepared: Prepared, h: jax.Array) -> jax.Array:
        return prepared.logits(h)

    def select(self, state: StackState, rows_B: jax.Array) -> StackState:
        rows = len(state.positions_B)

        def take(x: jax.Array) -> jax.Array:  # a single row's keys and values have no axis of rows
            taken = x.reshape(rows, *x.shape[-3:])[rows_B]
            return taken[0] if len(rows_B) == 1 else taken

        layers, segments_BS = jax.tree.map(take, state.cache.layers), state.cache.segments_BS[rows_B]
        # The cache apart: its length is one number for all rows.
        rest = jax.tree.map(lambda x: x[rows_B], state.replace(cache=None))
        return rest.replace(cache=state.cache.replace(layers=layers, segments_BS=segments_BS))

    def rewind(self, state: StackState, count: jax.Array | int) -> StackState:
        """Shorten the cache: later keys are masked, and overwritten by the next tokens."""
        cache = state.cache.replace(length=state.cache.length - count)
        return state.replace(cache=cache, positions_B=state.positions_B - count)


@dataclass(frozen=True)
class StackSteps(CachedSteps):
    """A causal Transformer stack; with `prefix` the tokens of a prompt all attend to each other."""

    config: Transformer
    prefix: bool = False
    source_limit: ClassVar[None] = None

    @property
    def limit(self) -> int:
        return self.config.context

    def lay_out(self, params: Any, arrange: Callable[[Transformer, Any], Any]) -> tuple[Any, Model]:
        return {**params, "stack": arrange(self.config, params["stack"])}, Model(self.config)

    def prefill(self, prepared: Prepared, prompts: Prompts, room: int) -> tuple[jax.Array, StackState]:
        (rows, width), segments_BT = prompts.tokens_BT.shape, prompts.segments_BT
        cache = empty_cache(self.config, rows, width + room, stacked=False)
        positions_BT, next_B = prompts.positions()
        prefix = segments_BT > 0 if self.prefix else None
        inputs, extras = (prompts.tokens_BT, positions_BT, segments_BT), {"prefix_BT": prefix, "cache": cache}
        h_BTD, cache = Model(self.config).apply(prepared.variables, *inputs, **extras)
        return h_BTD, StackState(cache=cache, positions_B=next_B)

    def step(self, prepared: Prepared, state: StackState, tokens_BT: jax.Array) -> tuple[jax.Array, StackState]:
        count = tokens_BT.shape[1]
        positions_BT = state.positions_B[:, None] + jnp.arange(count)
        h_BTD, cache = Model(self.config).apply(prepared.variables, tokens_BT, positions_BT, cache=state.cache)
        return h_BTD, StackState(cache=cache, positions_B=state.positions_B + count)


@dataclass(frozen=True)
class Seq2SeqSteps(CachedSteps):
    """An encoder-decoder: the source is read once, and its keys and values are kept beside the decoder's own.

    `attend` keeps the last layer's attention to the source, the mean of its heads, in the state (coverage penalties).
    """

    config: EncoderDecoder
    attend: bool = False

    @property
    def limit(self) -> int:
        return self.config.decoder.context

    @property
    def source_limit(self) -> int:
        return self.config.encoder.context

    def lay_out(self, params: Any, arrange: Callable[[Transformer, Any], Any]) -> tuple[Any, Seq2Seq]:
        return {**params, "decoder": arrange(self.config.decoder, params["decoder"])}, Seq2Seq(self.config)

    def prefill(self, prepared: Prepared, prompts: Prompts, room: int) -> tuple[jax.Array, StackState]:
        rows, width = prompts.tokens_BT.shape
        segments_BS = prompts.source_segments_BS
        h_BSD = Seq2Seq(self.config).apply(prepared.variables, prompts.source_BS, None, segments_BS, method="encode")

        # None in place of the source's keys and values: this pass computes and stores them, once.
        cache = empty_cache(self.config.decoder, rows, width + room, stacked=False)
        cache = cache.replace(layers=tuple((pair, None) for pair in cache.layers))
        positions_BT, next_B = prompts.positions()
        row = prompts.tokens_BT, positions_BT, prompts.segments_BT
        h_BTD, cache, attention_BS = self.decode(prepared, row, h_BSD, segments_BS, cache)
        if rows == 1:  # as the decoder's own: without an axis of rows
            cache = cache.replace(layers=tuple((own, jax.tree.map(lambda x: x[0], of)) for own, of in cache.layers))
        return h_BTD, StackState(cache, next_B, segments_BS, attention_BS)

    def step(self, prepared: Prepared, state: StackState, tokens_BT: jax.Array) -> tuple[jax.Array, StackState]:
        count = tokens_BT.shape[1]
        row = tokens_BT, state.positions_B[:, None] + jnp.arange(count), jnp.ones_like(tokens_BT)
        h_BTD, cache, attention_BS = self.decode(prepared, row, None, state.source_segments_BS, state.cache)
        return h_BTD, state.replace(cache=cache, positions_B=state.positions_B + count, attention_BS=attention_BS)

    def decode(
        self, prepared: Prepared, row: tuple[jax.Array, ...], h_BSD: jax.Array | None, segments_BS: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache, jax.Array | None]:
        """Run the decoder; return hidden states, cache and, with `attend`, the last token's attention (B, S)."""
        source = {"source_BSD": h_BSD, "source_segments_BS": segments_BS, "cache": cache, "method": "decode"}
        model = Seq2Seq(self.config)
        if not self.attend:
            return *model.apply(prepared.variables, *row, **source), None
        (h_BTD, cache), seen = model.apply(prepared.variables, *row, **source, mutable=["intermediates"])
        last = seen["intermediates"]["decoder"][f"layer{self.config.decoder.depth - 1}"]
        (weights_BNTS,) = last["cross"]["weights"]
        return h_BTD, cache, weights_BNTS[:, :, -1].mean(1)


def prepare(steps: StackSteps | Seq2SeqSteps, params: Any, single: bool, cpu: bool) -> Prepared:
    """Unstack the layers and, on a CPU, transpose matrices so that XLA's products stream through them.

    A slice of the stack inside the loop would be a copy. A vector goes through a matrix at 51 GB/s when each output's
    weights are contiguous and at 40 when they are not; for 8 rows it is 15 and 28 (2 cores, float32). Kernels come inputs
    first and the table outputs first, so one row flips the kernels and several flip the table.
    """

    def arrange(config: Transformer, stack: Any) -> Any:
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
