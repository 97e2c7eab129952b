"""Decoding steps of the architectures without a key-value cache: Transformer-XL, LSTM, XLNet."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from lm.decode.steps import Prepared, Prompts
from lm.models.lstm import LSTM, LSTMModel, State
from lm.models.memory import Memory, MemoryModel, TransformerXL, empty_memory
from lm.models.two_stream import TwoStream, XLNet

NEVER = jnp.iinfo(jnp.int32).max  # rank of positions that nothing attends to


class UncachedSteps:
    """Functions that these architectures share; `model` is the network, the same for any number of rows."""

    model: Any
    source_limit: ClassVar[None] = None
    rewinds: ClassVar[bool] = False
    complete: ClassVar[bool] = True

    @property
    def limit(self) -> int | None:
        return None

    def prepare(self, params: Any, rows: int) -> Prepared:
        return Prepared(params, self.model.apply({"params": params}, method="head"))

    def logits(self, prepared: Prepared, h: jax.Array) -> jax.Array:
        return prepared.logits(h)


@dataclass(frozen=True)
class MemorySteps(UncachedSteps):
    """A Transformer-XL: its state is the memory of the last M tokens, so that a text may go on for ever.

    A model trained without a memory gets one of its context's length, empty at first. A prompt is read as one segment,
    right behind the empty memory whatever the padding of its row.
    """

    config: TransformerXL

    @property
    def model(self) -> MemoryModel:
        if self.config.memory:
            return MemoryModel(self.config)
        return MemoryModel(dataclasses.replace(self.config, memory=self.config.context, begin="nothing"))

    def prefill(self, prepared: Prepared, prompts: Prompts, room: int) -> tuple[jax.Array, Memory]:
        memory = empty_memory(self.model.config, prompts.tokens_BT.shape[0])
        return self.model.apply(prepared.variables, prompts.tokens_BT, prompts.segments_BT, memory, fresh=True)

    def step(self, prepared: Prepared, state: Memory, tokens_BT: jax.Array) -> tuple[jax.Array, Memory]:
        return self.model.apply(prepared.variables, tokens_BT, None, state)

    def select(self, state: Memory, rows_B: jax.Array) -> Memory:
        return jax.tree.map(lambda x: x[rows_B], state)


@dataclass(frozen=True)
class LSTMSteps(UncachedSteps):
    """An LSTM: its state is each layer's cell and hidden vector."""

    config: LSTM

    @property
    def model(self) -> LSTMModel:
        return LSTMModel(self.config)

    def prefill(self, prepared: Prepared, prompts: Prompts, room: int) -> tuple[jax.Array, State]:
        return self.model.apply(prepared.variables, prompts.tokens_BT, prompts.segments_BT)

    def step(self, prepared: Prepared, state: State, tokens_BT: jax.Array) -> tuple[jax.Array, State]:
        return self.model.apply(prepared.variables, tokens_BT, None, state)

    def select(self, state: State, rows_B: jax.Array) -> State:
        # Layers come first in this state.
        return jax.tree.map(lambda x: x[:, rows_B], state)


class Page(struct.PyTreeNode):
    """The whole text so far: tokens (B, W), which of them are real, and the index of the next one."""

    tokens_BW: jax.Array
    real_BW: jax.Array
    count: jax.Array


@dataclass(frozen=True)
class PageSteps(UncachedSteps):
    """XLNet: tokens attend in both directions, so each new one changes all states, and the whole page is read again.

    The query stream predicts the next position, which nothing attends to (as `transformers` generates). Several tokens are
    read one after the other.
    """

    config: XLNet
    rewinds: ClassVar[bool] = True
    complete: ClassVar[bool] = False

    @property
    def limit(self) -> int:
        return self.config.context

    @property
    def model(self) -> TwoStream:
        return TwoStream(self.config)

    def prefill(self, prepared: Prepared, prompts: Prompts, room: int) -> tuple[jax.Array, Page]:
        # One place more than tokens to come: the position that is predicted lies behind all of them.
        width, wider = prompts.tokens_BT.shape[1], ((0, 0), (0, room + 1))
        page = Page(jnp.pad(prompts.tokens_BT, wider), jnp.pad(prompts.segments_BT > 0, wider), jnp.asarray(width, jnp.int32))
        return self.predict(prepared, page), page

    def step(self, prepared: Prepared, state: Page, tokens_BT: jax.Array) -> tuple[jax.Array, Page]:
        def read(page: Page, token_B: jax.Array) -> tuple[Page, jax.Array]:
            at = page.count[None]
            page = Page(page.tokens_BW.at[:, at].set(token_B[:, None]), page.real_BW.at[:, at].set(True), page.count + 1)
            return page, self.predict(prepared, page)[:, 0]

        page, h_TBD = jax.lax.scan(read, state, tokens_BT.T)
        return h_TBD.swapaxes(0, 1), page

    def predict(self, prepared: Prepared, page: Page) -> jax.Array:
        """Return the query stream's state (B, 1, D) at the next position."""
        rows = page.tokens_BW.shape[0]
        _, g_BPD, _ = self.model.apply(
            prepared.variables,
            page.tokens_BW,
            # Rank 0 is below every reach of 1: all real tokens see each other, in both directions.
            rank_BT=jnp.where(page.real_BW, 0, NEVER),
            reach_BT=jnp.ones_like(page.tokens_BW),
            places_BP=jnp.broadcast_to(page.count, (rows, 1)),
        )
        return g_BPD

    def select(self, state: Page, rows_B: jax.Array) -> Page:
        return state.replace(tokens_BW=state.tokens_BW[rows_B], real_BW=state.real_BW[rows_B])

    def rewind(self, state: Page, count: jax.Array | int) -> Page:
        kept = jnp.arange(state.tokens_BW.shape[1]) < state.count - count
        return state.replace(real_BW=state.real_BW & kept, count=state.count - count)
