"""An LSTM language model (Hochreiter & Schmidhuber 1997; Zaremba et al. 2014): the network before Transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lm.errors import check_choices, check_range
from lm.models.heads import Head
from lm.models.layers import Embed, Linear, dropout, fold, named, repeat
from lm.models.shape import Shape
from lm.sharding import constrain


@dataclass(frozen=True, kw_only=True)
class LSTM(Shape):
    """Sizes of the network; every layer is as wide as the embedding.

    `dropout` acts between layers, never along time (Zaremba et al. 2014). `forget`: initial bias of the forget gates
    (Jozefowicz et al. 2015: 1). `init`: standard deviation of the tables; that of matrices is 1/sqrt(width).
    """

    vocab: int = 0  # 0: the tokenizer's size
    pad_vocab: int = 1  # the table's rows are a multiple of this; the extra logits are masked
    context: int = 128  # tokens of a row: the truncation of backpropagation through time
    width: int = 512  # of the embedding and of every layer
    depth: int = 2
    tied: bool = True
    dropout: float = 0.0
    forget: float = 1.0
    init: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1  # steps of time compiled together

    def __post_init__(self):
        check_choices(self)
        check_range(self, 1, float("inf"), "pad_vocab", "context", "width", "depth", "unroll")
        check_range(self, 0, float("inf"), "vocab", "init")
        check_range(self, 0, 1, "dropout")
        check_range(self, -float("inf"), float("inf"), "forget")

    def flops(self) -> float:
        """Return the FLOPs of a training step per token: 6 x the matrix parameters."""
        return 6 * (8 * self.depth * self.width**2 + self.vocab * self.width)


class State(struct.PyTreeNode):
    """Cell and hidden state of a layer; float32, whatever dtype the products have."""

    cell_BD: jax.Array
    hidden_BD: jax.Array


def cell(pre_BGD: jax.Array, cell_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the activated gates (input, forget, candidate, output) and the new cell state."""
    i, f, g, o = (pre_BGD[:, n] for n in range(4))
    gates = jnp.stack([jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)], 1)
    return gates, gates[:, 1] * cell_BD + gates[:, 0] * gates[:, 2]


@jax.custom_vjp
def recur(pre_TBGD: jax.Array, kernel_DGD: jax.Array, keep_TB: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Scan over time: hidden states (T, B, D) and the last state; `keep_TB` is False where the state is reset.

    Differentiated by hand: the gradient of the recurrent matrix is one product over all times at the end, where the
    derivative of a scan would read and write a sum as large as the matrix at every step.
    """
    hidden_TBD, state, _ = scan(pre_TBGD, kernel_DGD, keep_TB, state)
    return hidden_TBD, state


def scan(
    pre_TBGD: jax.Array, kernel_DGD: jax.Array, keep_TB: jax.Array, state: State
) -> tuple[jax.Array, State, tuple[jax.Array, ...]]:
    """Return the hidden states, the last state, and for each time (gates, cell before, hidden before, cell after)."""
    _, batch, gates, width = pre_TBGD.shape
    matrix = kernel_DGD.reshape(width, -1)

    def step(state: State, now: Sequence[jax.Array]) -> tuple[State, Any]:
        pre_BGD, keep_B = now
        # Reset within the scan, so that a packed document starts from zero as it would alone.
        old_cell, old_hidden = (jnp.where(keep_B[:, None], x, 0) for x in (state.cell_BD, state.hidden_BD))
        product = jnp.dot(old_hidden.astype(matrix.dtype), matrix, preferred_element_type=jnp.float32)
        gates_BGD, new_cell = cell(pre_BGD + product.reshape(batch, gates, width), old_cell)
        new_hidden = gates_BGD[:, 3] * jnp.tanh(new_cell)
        return State(new_cell, new_hidden), (new_hidden, (gates_BGD, old_cell, old_hidden, new_cell))

    state, (hidden_TBD, saved) = jax.lax.scan(step, state, (pre_TBGD, keep_TB))
    return hidden_TBD, state, saved


def recur_forward(
    pre_TBGD: jax.Array, kernel_DGD: jax.Array, keep_TB: jax.Array, state: State
) -> tuple[tuple[jax.Array, State], tuple[Any, ...]]:
    """Run forward and save gates and states as residuals."""
    hidden_TBD, state, saved = scan(pre_TBGD, kernel_DGD, keep_TB, state)
    return (hidden_TBD, state), (kernel_DGD, keep_TB, saved)


def recur_backward(residuals: tuple[Any, ...], cotangents: tuple[jax.Array, State]) -> tuple[Any, ...]:
    """Scan back in time for the gradients of the gates; the matrix's follows from all of them in one product."""
    kernel_DGD, keep_TB, (gates_TBGD, cell_TBD, hidden_TBD, new_cell_TBD) = residuals
    d_hidden_TBD, d_state = cotangents
    width = kernel_DGD.shape[0]
    transposed = kernel_DGD.reshape(width, -1).T

    def step(d_state: State, now: Sequence[jax.Array]) -> tuple[State, jax.Array]:
        d_out, keep_B, gates, old_cell, new_cell = now
        i, f, g, o = (gates[:, n] for n in range(4))
        d_hidden = d_state.hidden_BD + d_out
        squashed = jnp.tanh(new_cell)
        d_cell = d_state.cell_BD + d_hidden * o * (1 - squashed**2)
        d_gates = d_cell * g * i * (1 - i), d_cell * old_cell * f * (1 - f), d_cell * i * (1 - g**2)
        d_pre = jnp.stack([*d_gates, d_hidden * squashed * o * (1 - o)], 1)
        d_old = jnp.dot(d_pre.reshape(len(d_pre), -1).astype(transposed.dtype), transposed, preferred_element_type=jnp.float32)
        # A reset state passes no gradient to the document before.
        keep = keep_B[:, None]
        return State(jnp.where(keep, d_cell * f, 0), jnp.where(keep, d_old, 0)), d_pre

    # One product over all times for the matrix's gradient, where a scan would add to it at every step.
    times = d_hidden_TBD, keep_TB, gates_TBGD, cell_TBD, new_cell_TBD
    d_state, d_pre_TBGD = jax.lax.scan(step, d_state, times, reverse=True)
    before, after = hidden_TBD.reshape(-1, width), d_pre_TBGD.reshape(-1, 4 * width)
    d_kernel = jnp.dot(before.T, after).reshape(kernel_DGD.shape).astype(kernel_DGD.dtype)
    return d_pre_TBGD, d_kernel, None, d_state


recur.defvjp(recur_forward, recur_backward)


class Layer(nn.Module):
    """One layer over a whole row: all input projections in one product, then the recurrence."""

    config: LSTM

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, scanned: tuple[jax.Array, State], keep_BT: jax.Array, keys_B: jax.Array | None
    ) -> tuple[jax.Array, State]:
        c, (layer, state) = self.config, scanned
        x_BTD = dropout(x_BTD, c.dropout, fold(keys_B, layer), 0)
        shape, axes = (c.width, 4, c.width), ("embed", None, "mlp")
        std = c.width**-0.5
        pre_BTGD = Linear(shape, axes, bias=False, std=std, name="input")(x_BTD).astype(jnp.float32)
        kernel_DGD = self.param("recurrent", named(nn.initializers.normal(std), axes), shape)
        pre_BTGD += self.param("bias", named(self.biases, axes[1:]), shape[1:])
        # Gathered once: a sharded matrix would be gathered again at every time step.
        kernel_DGD = constrain(kernel_DGD.astype(c.dtype), None, None, None)
        hidden_TBD, state = recur(pre_BTGD.swapaxes(0, 1), kernel_DGD, keep_BT.T, state)
        return constrain(hidden_TBD.swapaxes(0, 1).astype(c.dtype), "batch", "length", None), state

    def biases(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        # Forget gates start open, so that the gradient reaches far back (Jozefowicz et al. 2015).
        return jnp.zeros(shape, dtype).at[1].set(self.config.forget)


class LSTMModel(nn.Module):
    """Tokens to hidden states, and the head that maps those to logits."""

    config: LSTM

    def setup(self) -> None:
        c = self.config
        self.embed = Embed(c.rows, c.width, std=c.init)
        if not c.tied:
            self.output = Embed(c.rows, c.width, std=c.init)
        self.bias = self.param("head_bias", named(nn.initializers.zeros, ("vocab",)), (c.rows,))
        self.layers = repeat(Layer, c, in_axes=(0, nn.broadcast, nn.broadcast))(c)

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        state: State | None = None,
        *,
        keys_B: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """Return hidden states (B, T, D) in the compute dtype and the last state, its arrays (L, B, D).

        `segments_BT` numbers the documents of a row: the state is reset between them. `state`: that after the tokens
        before the row, zeros when None. `keys_B`, one per row, turn dropout on.
        """
        c = self.config
        if self.is_initializing():
            self.head()
        if state is None:
            state = empty_state(c, tokens_BT.shape[0])
        # The state is reset at the first token of each document but the row's first, which may continue the last row.
        keep_BT = jnp.ones(tokens_BT.shape, bool)
        if segments_BT is not None:
            keep_BT = keep_BT.at[:, 1:].set(segments_BT[:, 1:] == segments_BT[:, :-1])
        x_BTD = self.embed(tokens_BT, jnp.dtype(c.dtype))
        h_BTD, state = self.layers(x_BTD, (jnp.arange(c.depth), state), keep_BT, keys_B)
        return dropout(h_BTD, c.dropout, fold(keys_B, c.depth), 0), state

    def head(self) -> Head:
        """Return the vocabulary projection."""
        table = self.embed.table if self.config.tied else self.output.table
        return Head(table_VD=table, bias_V=self.bias, vocab=self.config.vocab)


def empty_state(config: LSTM, rows: int) -> State:
    """Make the zero state of `rows` rows: arrays (L, B, D)."""
    zeros = jnp.zeros((config.depth, rows, config.width), jnp.float32)
    return State(cell_BD=zeros, hidden_BD=zeros)
