"""Decoding steps of the architectures whose state is no key-value cache: Transformer-XL, LSTM, XLNet."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from lm.models.lstm import LSTM, LSTMModel, State
from lm.models.memory import Memory, MemoryModel, TransformerXL, empty_memory
from lm.models.two_stream import TwoStream, XLNet

NEVER = jnp.iinfo(jnp.int32).max  # rank of what nobody sees


class Plain(struct.PyTreeNode):
    """Parameters as they are, and the head."""

    params: Any
    head: Any

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params}


@dataclass(frozen=True)
class MemorySteps:
    """A Transformer-XL: what it keeps is its memory, of the last M tokens, so that a text may go on for ever.

    A model trained without a memory gets one of its context, which begins with nothing. A prompt is read as one segment,
    right behind the empty memory wherever its row is padded to.
    """

    config: TransformerXL
    limit: ClassVar[None] = None
    source_limit: ClassVar[None] = None
    rewinds: ClassVar[bool] = False
    complete: ClassVar[bool] = True

    @property
    def model(self) -> MemoryModel:
        if self.config.memory:
            return MemoryModel(self.config)
        return MemoryModel(dataclasses.replace(self.config, memory=self.config.context, begin="nothing"))

    def prepare(self, params, rows):
        return Plain(params, self.model.apply({"params": params}, method="head"))

    def prefill(self, prepared, prompts, room):
        memory = empty_memory(self.model.config, prompts.tokens_BT.shape[0])
        return self.model.apply(prepared.variables, prompts.tokens_BT, prompts.segments_BT, memory, fresh=True)

    def step(self, prepared, state, tokens_BT):
        return self.model.apply(prepared.variables, tokens_BT, None, state)

    def logits(self, prepared, h):
        return prepared.head.logits(h)

    def select(self, state: Memory, rows_B):
        return jax.tree.map(lambda x: x[rows_B], state)


@dataclass(frozen=True)
class LSTMSteps:
    """An LSTM: what it keeps is each layer's cell and hidden vector."""

    config: LSTM
    limit: ClassVar[None] = None
    source_limit: ClassVar[None] = None
    rewinds: ClassVar[bool] = False
    complete: ClassVar[bool] = True

    def prepare(self, params, rows):
        return Plain(params, LSTMModel(self.config).apply({"params": params}, method="head"))

    def prefill(self, prepared, prompts, room):
        return LSTMModel(self.config).apply(prepared.variables, prompts.tokens_BT, prompts.segments_BT)

    def step(self, prepared, state, tokens_BT):
        return LSTMModel(self.config).apply(prepared.variables, tokens_BT, None, state)

    def logits(self, prepared, h):
        return prepared.head.logits(h)

    def select(self, state: State, rows_B):
        return jax.tree.map(lambda x: x[:, rows_B], state)


class Page(struct.PyTreeNode):
    """The whole text so far: tokens (B, W), whether each is there, and where the next one goes."""

    tokens_BW: jax.Array
    real_BW: jax.Array
    count: jax.Array


@dataclass(frozen=True)
class PageSteps:
    """XLNet: all tokens see each other, so each new one changes what the others are, and the whole page is read again.

    The query stream asks for the next place, which nobody sees (as `transformers` generates). Many tokens at once are
    read one after the other.
    """

    config: XLNet
    source_limit: ClassVar[None] = None
    rewinds: ClassVar[bool] = True
    complete: ClassVar[bool] = False

    @property
    def limit(self) -> int:
        return self.config.context

    def prepare(self, params, rows):
        return Plain(params, TwoStream(self.config).apply({"params": params}, method="head"))

    def prefill(self, prepared, prompts, room):
        width, wider = prompts.tokens_BT.shape[1], ((0, 0), (0, room + 1))
        page = Page(
            jnp.pad(prompts.tokens_BT, wider), jnp.pad(prompts.segments_BT > 0, wider), jnp.asarray(width, jnp.int32)
        )
        return self.ask(prepared, page), page

    def step(self, prepared, state, tokens_BT):
        def one(page, token_B):
            at = page.count[None]
            page = Page(page.tokens_BW.at[:, at].set(token_B[:, None]), page.real_BW.at[:, at].set(True), page.count + 1)
            return page, self.ask(prepared, page)[:, 0]

        page, h_TBD = jax.lax.scan(one, state, tokens_BT.T)
        return h_TBD.swapaxes(0, 1), page

    def ask(self, prepared, page: Page):
        """Give the query stream's state (B, 1, D) at the next place."""
        rows = page.tokens_BW.shape[0]
        _, g_BPD, _ = TwoStream(self.config).apply(
            prepared.variables,
            page.tokens_BW,
            rank_BT=jnp.where(page.real_BW, 0, NEVER),
            reach_BT=jnp.ones_like(page.tokens_BW),
            places_BP=jnp.broadcast_to(page.count, (rows, 1)),
        )
        return g_BPD

    def logits(self, prepared, h):
        return prepared.head.logits(h)

    def select(self, state: Page, rows_B):
        return state.replace(tokens_BW=state.tokens_BW[rows_B], real_BW=state.real_BW[rows_B])

    def rewind(self, state: Page, count):
        kept = jnp.arange(state.tokens_BW.shape[1]) < state.count - count
        return state.replace(real_BW=state.real_BW & kept, count=state.count - count)
