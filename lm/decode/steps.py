"""What a decoding loop asks of an architecture, and how the Transformer stack answers.

A loop knows tokens and logits only; the state between two steps (here the key-value cache) is a value that it hands
back. Another architecture, a draft model or an encoder-decoder serves every loop by these same functions.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from lm.models.attention import Cache
from lm.models.heads import Head
from lm.models.model import Model, empty_cache
from lm.models.transformer import Transformer


class Steps(Protocol):
    """Pure functions of prepared parameters; the object is hashable, a static argument of compiled functions."""

    def prepare(self, params: Any, rows: int) -> Any:
        """Lay the parameters out for steps of `rows` rows; called once, before the loop."""

    def prefill(self, prepared: Any, tokens_BT: jax.Array, segments_BT: jax.Array, length: int) -> tuple[Any, Any]:
        """Read left-padded prompts (segment 0: padding) in one pass.

        Give the logits (B, V) of what follows, and a state with room for `length` tokens in all.
        """

    def step(self, prepared: Any, state: Any, tokens_B: jax.Array) -> tuple[jax.Array, Any]:
        """Read one more token a row; give the logits (B, V) of what follows, and the state."""

    def select(self, state: Any, rows_B: jax.Array) -> Any:
        """Give the state whose row i is row `rows_B[i]` of this one: repeated samples, reordered beams."""


class StackState(struct.PyTreeNode):
    """The cache, and the position of the next token, counted from each row's first real token."""

    cache: Cache
    positions_B: jax.Array


@dataclass(frozen=True)
class StackSteps:
    """A causal Transformer stack, token by token."""

    config: Transformer

    def prepare(self, params, rows):
        return lay_out(self, params, rows == 1, jax.default_backend() == "cpu")

    def prefill(self, prepared, tokens_BT, segments_BT, length):
        rows, width = tokens_BT.shape
        cache = empty_cache(self.config, rows, length, stacked=False)
        pad_B = width - segments_BT.sum(1)
        positions_BT = jnp.maximum(jnp.arange(width) - pad_B[:, None], 0)
        variables = {"params": prepared.params}
        h_BTD, cache = Model(self.config).apply(variables, tokens_BT, positions_BT, segments_BT, cache=cache)
        return prepared.logits(h_BTD[:, -1]), StackState(cache=cache, positions_B=width - pad_B)

    def step(self, prepared, state, tokens_B):
        variables, positions_BT = {"params": prepared.params}, state.positions_B[:, None]
        h_BTD, cache = Model(self.config).apply(variables, tokens_B[:, None], positions_BT, cache=state.cache)
        logits_BV = prepared.logits(h_BTD[:, 0])
        return logits_BV, StackState(cache=cache, positions_B=state.positions_B + 1)

    def select(self, state, rows_B):
        rows = len(state.positions_B)

        def one(x):  # a single row's keys and values have no axis of rows
            taken = x.reshape(rows, *x.shape[-3:])[rows_B]
            return taken[0] if len(rows_B) == 1 else taken

        cache = state.cache.replace(
            layers=jax.tree.map(one, state.cache.layers), segments_BS=state.cache.segments_BS[rows_B]
        )
        return StackState(cache=cache, positions_B=state.positions_B[rows_B])


class Prepared(struct.PyTreeNode):
    """Parameters with one tree a layer, and the vocabulary projection, whose table may lie as (D, V)."""

    params: Any
    head: Head
    table_DV: jax.Array | None = None

    def logits(self, h_BD: jax.Array) -> jax.Array:
        head = self.head if self.table_DV is None else self.head.replace(table_VD=self.table_DV.T)
        return head.logits(h_BD)


def prepare(steps: StackSteps, params: Any, single: bool, cpu: bool) -> Prepared:
    """Take the stacked layers apart and, on a CPU, turn matrices so that XLA's products stream through them.

    A slice of the stack inside the loop would be a copy. A vector goes through a matrix at 51 GB/s when each output's
    weights lie together and at 40 when they do not; for 8 rows it is 15 and 28 (2 cores, float32). Kernels come inputs
    first and the table outputs first, so one row flips the kernels and several flip the table.
    """
    c = steps.config
    stack = dict(params["stack"])
    layers = stack.pop("layers")
    for i in range(c.depth):
        layer = jax.tree.map(lambda x, i=i: x[i], layers)
        stack[f"layer{i}"] = flip(layer) if cpu and single else layer
    head = Model(c).apply({"params": params}, method="head")
    prepared = Prepared(params={**params, "stack": stack}, head=head)
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
