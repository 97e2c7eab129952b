"""Zero ablation of attention heads and of feed-forward neurons: the change of the loss on one text.

A head or neuron is switched off by zeroing its rows of the matrix onto the residual stream, in which it alone is the input;
the bias of that matrix stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check
from lm.explain.attribution import Params, Rows
from lm.explain.explain import lay_out, loss_on_text
from lm.explain.labelled import LabelScorer, decide
from lm.objectives.base import Objective

BUDGET = 4e12  # operations that 'auto' spends
TOKENS = 4096  # of one pass: heads that are ablated at once times tokens
HEADS = {  # name of a picture of attention -> path of its output matrix
    "attention": ("stack", "layers", "attention", "out"),
    "encoder": ("encoder", "layers", "attention", "out"),
    "decoder": ("decoder", "layers", "attention", "out"),
    "decoder to source": ("decoder", "layers", "cross", "out"),
}
NEURONS = {name: (name, "layers", "mlp", "down") for name in ("stack", "encoder", "decoder")}
Path = tuple[str, ...]


class Loss(Protocol[Rows]):
    """A network's loss on a batch, a mean in nats; hashable, as a static argument is."""

    def loss(self, params: Params, batch: Rows, picks: tuple[jax.Array, ...]) -> jax.Array: ...


@dataclass(frozen=True)
class Neuron:
    """A neuron of a feed-forward, counted from 0, with its first-order and its exact change of the loss."""

    stack: str
    layer: int
    neuron: int
    estimate: float
    change: float


@dataclass(frozen=True)
class Ablation:
    """Changes of the loss, nats a prediction: exact ones of heads (L, N), first-order ones of neurons (L, F), by stack.

    Layers that share their parameters are ablated together: L is 1.
    """

    loss: float
    heads: dict[str, np.ndarray]
    estimates: dict[str, np.ndarray]
    neurons: list[Neuron]


def ablate(
    objective: Objective, params: Params, tokenizer: Tokenizer, text: str | Mapping[str, Any], *, target: str | None = None,
    label: str | None = None, neurons: int = 20, budget: float = float("inf"),
) -> Ablation:  # fmt: skip
    """Ablate every head, and the `neurons` with the largest first-order estimates, and measure the loss on a text.

    The loss is that of the text's tokens; of [MASK]s the model's own guesses, of labelled objectives the predicted label or
    `label`. Raises UserError where it would take more than `budget` operations.
    """
    if objective.answers is not None and not objective.writes:
        check(objective.answers.form != "numbers", "a number has no probability: ablation is of labels and tokens")
        decision = decide(objective, params, tokenizer, text, label)
        tokens = sum(side.size for side in decision.sides)
        check_cost(objective, params, tokens, neurons, budget)
        picks = (np.array(decision.chosen, np.int32),)
        return measure(LabelScorer(decision.objective), params, dict(decision.row), picks, tokens, neurons)
    network, sides, tokens_picked = loss_on_text(lay_out(objective, params, tokenizer, str(text), target), params)
    tokens = sum(side.size for side in sides)
    check_cost(objective, params, tokens, neurons, budget)
    return measure(network, params, sides, tokens_picked, tokens, neurons)


def heads_of(params: Params) -> dict[str, tuple[int, ...]]:
    """Return the layers and heads of each stack, (L, N), or (N,) of layers that share their parameters."""
    return {name: matrix_at(params, path)["kernel"].shape[:-2] for name, path in HEADS.items() if exists(params, path)}


def check_cost(objective: Objective, params: Params, tokens: int, neurons: int, budget: float) -> None:
    """Raise UserError for a network without heads, and where ablation takes more operations than the budget."""
    heads = heads_of(params)
    check(bool(heads), f"ablation is of Transformers, not of a model of {type(objective).__name__}")
    cost = 2.0 * sum(x.size for x in jax.tree.leaves(params)) * tokens * (sum(map(np.prod, heads.values())) + neurons)
    if cost > budget:
        raise UserError(f"{cost:.1e} operations for all heads: --ablate=all computes them")


def measure(
    loss: Loss[Rows], params: Params, batch: Rows, picks: tuple[np.ndarray, ...], tokens: int, neurons: int
) -> Ablation:
    """Ablate every head, and the neurons with the largest first-order estimates; `tokens`: of the batch."""
    before = float(value(loss, params, batch, picks))
    at_once = max(1, min(16, TOKENS // tokens))
    changes = {}
    for name, shape in heads_of(params).items():
        units = np.arange(int(np.prod(shape)))
        after = np.asarray(ablated(loss, HEADS[name], at_once, params, batch, picks, units))
        changes[name] = two_axes(after.reshape(shape) - before)

    # Neurons are too many: the first-order estimate chooses those whose ablation is computed.
    present = tuple((name, path) for name, path in NEURONS.items() if exists(params, path))
    slopes = jax.device_get(slopes_of_rows(loss, present, params, batch, picks))
    estimates = {name: -two_axes(np.asarray(slope)) for name, slope in slopes.items()}
    every = [(abs(x), name, i) for name, estimate in estimates.items() for i, x in enumerate(estimate.ravel())]
    best, exact = sorted(every, key=lambda one: -one[0])[:neurons], []
    for name, path in present:
        units = np.array([i for _, own, i in best if own == name], np.int32)
        if not len(units):
            continue
        after = np.asarray(ablated(loss, path, at_once, params, batch, picks, units))
        for i, x in zip(units.tolist(), after):
            layer, neuron = divmod(i, estimates[name].shape[1])
            exact.append(Neuron(name, layer, neuron, float(estimates[name][layer, neuron]), float(x) - before))
    return Ablation(before, changes, estimates, sorted(exact, key=lambda one: -abs(one.change)))


def exists(params: Params, path: Path) -> bool:
    for name in path:
        if name not in params:
            return False
        params = params[name]
    return True


def matrix_at(params: Params, path: Path) -> Params:
    for name in path:
        params = params[name]
    return params


def two_axes(x: np.ndarray) -> np.ndarray:
    return x[None] if x.ndim == 1 else x


def masked(params: Params, path: Path, mask: jax.Array) -> dict[str, Any]:
    """Multiply the rows of a matrix, and of its low-rank factor, by a mask of its leading axes."""
    if path:
        return {**params, path[0]: masked(params[path[0]], path[1:], mask)}
    rows = {name: params[name] for name in ("kernel", "lora_a") if name in params}
    return {**params, **{name: x * mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)) for name, x in rows.items()}}


@partial(jax.jit, static_argnums=0)
def value(loss: Loss[Rows], params: Params, batch: Rows, picks: tuple[jax.Array, ...]) -> jax.Array:
    return loss.loss(params, batch, picks)


@partial(jax.jit, static_argnums=(0, 1, 2))
def ablated(
    loss: Loss[Rows], path: Path, at_once: int, params: Params, batch: Rows, picks: tuple[jax.Array, ...], units: jax.Array
) -> jax.Array:
    """Return the loss without each unit, a row of the matrix at `path` by its number, float32 (U,)."""
    kernel = matrix_at(params, path)["kernel"]
    shape = kernel.shape[: rows_of_kernel(path, kernel.ndim)]

    def without(unit: jax.Array) -> jax.Array:
        mask = jnp.ones(int(np.prod(shape)), kernel.dtype).at[unit].set(0).reshape(shape)
        return loss.loss(masked(params, path, mask), batch, picks)

    return jax.lax.map(without, units, batch_size=at_once)


def rows_of_kernel(path: Path, axes: int) -> int:
    """Return the axes of a kernel that number its units: all but (H, D) of heads, all but D of neurons."""
    return axes - (1 if path[-1] == "down" else 2)


@partial(jax.jit, static_argnums=(0, 1))
def slopes_of_rows(
    loss: Loss[Rows], paths: tuple[tuple[str, Path], ...], params: Params, batch: Rows, picks: tuple[jax.Array, ...]
) -> dict[str, jax.Array]:
    """Return the derivative of the loss by a factor on each neuron: activation x gradient, summed over tokens."""

    def scaled(masks: dict[str, jax.Array]) -> jax.Array:
        changed = params
        for name, path in paths:
            changed = masked(changed, path, masks[name])
        return loss.loss(changed, batch, picks)

    return jax.grad(scaled)({name: jnp.ones(matrix_at(params, path)["kernel"].shape[:-1]) for name, path in paths})
