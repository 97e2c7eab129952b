"""Config -> optax chain. The chain returns the step of unit learning rate; the train step multiplies by the rate.

Keeping the rate outside makes it a function of the step alone, the same for every rule, and logged as it is used.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from lm.sharding import axes_of, unbox
from lm.training import parameters
from lm.training.settings import Optimizer

STACKED = ("layers", "experts")  # axes of separate matrices in one array


def grouped(config: Optimizer, params: Any, mup: float = 1.0) -> optax.GradientTransformation:
    """Build the chain for the trained ones of (abstract, named) parameters, each with its factor on the rate.

    Frozen parameters get zero updates and no optimizer state.
    """
    axes = parameters.flat(axes_of(params))
    shapes = {path: (x.shape, axes[path]) for path, x in parameters.flat(unbox(params)).items()}
    chosen = parameters.trained(config.groups, shapes)
    factors = {path: x for path, x in parameters.factors(config.groups, shapes).items() if path in chosen}
    # Factors multiply the finished update, decay included: a slower layer also decays more slowly.
    parts = [build(config, parameters.nested({path: axes[path] for path in axes if path in chosen}), mup)]
    if any(np.any(x != 1) for x in factors.values()):
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, parameters.nested(factors))))
    if config.groups.unfreeze:
        first = {path: x for path, x in parameters.joins(config.groups, shapes).items() if path in chosen}
        parts.append(waiting(parameters.nested(first)))
    chain = optax.chain(*parts) if len(parts) > 1 else parts[0]
    return chain if len(chosen) == len(shapes) else only(chain, chosen)


def waiting(first: Any) -> optax.GradientTransformation:
    """Zero the updates of each parameter before its first step, given as a tree of (arrays of) step numbers."""

    # Updates are zeroed behind the rule, so that moments follow the gradient from the first step.
    def update(updates, state, params=None):
        moved = jax.tree.map(lambda u, step: jnp.where(state.count >= step, u, 0), updates, first)
        return moved, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(lambda _: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update)


def only(chain: optax.GradientTransformation, chosen: set[str]) -> optax.GradientTransformation:
    """Restrict a chain to the parameters of these paths; the updates of all others are zero."""

    def pick(tree):
        return parameters.nested({path: x for path, x in parameters.flat(tree).items() if path in chosen})

    def update(updates, state, params=None):
        moved, state = chain.update(pick(updates), state, None if params is None else pick(params))
        frozen = {path: jnp.zeros_like(x) for path, x in parameters.flat(updates).items() if path not in chosen}
        # The map restores the order of keys, which nested dictionaries of two origins do not have.
        return jax.tree.map(lambda _, u: u, updates, parameters.nested({**parameters.flat(moved), **frozen})), state

    return optax.GradientTransformation(lambda params: chain.init(pick(params)), update)


def build(config: Optimizer, axes: Any, mup: float = 1.0) -> optax.GradientTransformation:
    """Chain clipping, the rule, muP's factors and decoupled decay.

    `axes`: tree of logical axes, as the parameters. `mup`: width over the tuned width. Decay is not scaled with it.
    """
    # The order matters: clipping sees raw gradients, muP scales the rule's update, decay comes last and unscaled.
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    parts.append(rule(config, axes))
    if mup != 1.0:
        scales = map_axes(lambda a: mup_factor(config.name, is_hidden(a), mup), axes)
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales)))
    if config.decay and config.name != "lamb":  # whose ratios are of updates with the decay in them
        parts.append(optax.add_decayed_weights(config.decay, mask=map_axes(is_matrix, axes)))
    return optax.chain(*parts, optax.scale(-1.0))


def mup_factor(name: str, hidden: bool, mup: float) -> float:
    """Return muP's factor on the update of hidden matrices, or of all else (Yang et al. 2022, table 8).

    Rules with updates of fixed size take 1/m for hidden matrices. Adafactor's updates are relative to parameters drawn
    with 1/sqrt(m), as LAMB's are, and Muon's orthogonal ones move a layer's output by only sqrt(m): all lack 1/sqrt(m).
    """
    if name == "sgd":
        return 1.0 if hidden else mup
    return {"adafactor": mup**-0.5, "lamb": mup**-0.5, "muon": mup**-0.5}.get(name, 1 / mup) if hidden else 1.0


def rule(config: Optimizer, axes: Any) -> optax.GradientTransformation:
    """Build the update rule."""
    b1, b2 = config.betas
    if config.name == "adamw":  # Loshchilov & Hutter 2019
        return optax.scale_by_adam(b1, b2, config.eps)
    if config.name == "adamw_bert":
        return uncorrected_adam(b1, b2, config.eps)
    if config.name == "lamb":
        return lamb(config, axes)
    if config.name == "lion":  # Chen et al. 2023
        return optax.scale_by_lion(b1, b2)
    if config.name == "sgd":
        return optax.trace(config.momentum) if config.momentum else optax.identity()
    if config.name == "adafactor":
        return adafactor(axes)
    # Muon (Jordan et al. 2024) for hidden matrices, Adam with Nesterov momentum for tables, norms and biases; updates are
    # scaled to an RMS of 0.2 (Liu et al. 2025), about Adam's, so that one learning rate and decay serve both.
    numbers = map_axes(matrix_axes, axes)
    muon = contrib.muon(
        1.0,
        beta=config.momentum,
        eps=config.eps,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=numbers,
    )
    # `muon` descends by itself; `build` sets the sign of every rule at its end, so this one's is undone.
    return optax.chain(muon, optax.scale(-1.0))


def uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction, m / (sqrt(v) + eps), as in the released code of BERT (Devlin et al. 2019).

    First updates are (1 - b1) / sqrt(1 - b2) times those of Adam, about three times at the usual betas.
    """

    def init(params):
        # Two arrays for the two moments: a buffer that is donated to the step must not be in the state twice.
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

    def update(updates, state, params=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, updates)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def lamb(config: Optimizer, axes: Any) -> optax.GradientTransformation:
    """Adam's direction plus decay, scaled per parameter to the parameter's norm (You et al. 2020, algorithm 2).

    Stacked layers are parameters of their own. Norms and biases, which do not decay, keep the direction's own length, as
    in the code that trained ALBERT (Lan et al. 2020).
    """

    def scaled(a, u, p):
        if not is_matrix(a):
            return u
        # The decay is inside the norm (algorithm 2), hence not added again by `build`.
        over = tuple(i for i, name in enumerate(a) if name not in STACKED)
        u = u + config.decay * p
        size, length = (jnp.sqrt(jnp.square(x).sum(over, keepdims=True)) for x in (p, u))
        return u * jnp.where((size > 0) & (length > 0), size / jnp.where(length > 0, length, 1), 1.0)

    def ratios(updates, params):
        return jax.tree.map(scaled, axes, updates, params, is_leaf=is_axes)

    return optax.chain(optax.scale_by_adam(*config.betas, config.eps), optax.stateless(ratios))


def matrix_axes(axes: tuple) -> contrib.MuonDimensionNumbers | None:
    """Return the input and output axes of a hidden matrix, None for other arrays; stacked layers are separate matrices."""
    if not is_hidden(axes):
        return None
    pivot = "rank" if "rank" in axes else "embed"  # a LoRA factor is a matrix from or to its rank
    rest = tuple(i for i, a in enumerate(axes) if a not in (pivot, *STACKED))
    embed = (axes.index(pivot),)
    inputs, outputs = (embed, rest) if embed < rest else (rest, embed)
    return contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=outputs)


def adafactor(axes: Any) -> optax.GradientTransformation:
    """Adafactor: factored second moments, updates clipped at RMS 1 and relative to the parameter (Shazeer & Stern 2018).

    Kernels are treated as one matrix per layer, regardless of their head axes and of how layers are stacked.
    """
    # optax factors the two largest axes, which for (layers, width, heads, head size) are not those of the matrix.
    factored = optax.scale_by_factored_rms()

    def fold(tree):
        return jax.tree.map(lambda a, x: x.reshape(matrix_shape(a, x.shape)), axes, tree, is_leaf=is_axes)

    def rms(a, x):
        over = tuple(i for i, name in enumerate(a) if name not in STACKED)
        return jnp.sqrt(jnp.square(x).mean(over, keepdims=True))

    def relative(a, u, p):
        # At least 1e-3 of size, so that a parameter that starts at 0 can move.
        return u / jnp.maximum(1.0, rms(a, u)) * jnp.maximum(rms(a, p), 1e-3)

    def update(updates, state, params):
        folded, state = factored.update(fold(updates), state, fold(params))
        direction = jax.tree.map(lambda u, p: u.reshape(p.shape), folded, params)
        return jax.tree.map(relative, axes, direction, params, is_leaf=is_axes), state

    return optax.GradientTransformation(lambda params: factored.init(fold(params)), update)


def matrix_shape(axes: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a hidden matrix as (layers, inputs, outputs); that of other arrays unchanged."""
    numbers = matrix_axes(axes)
    if numbers is None:
        return shape
    sides = (math.prod(shape[i] for i in side) for side in (numbers.reduction_axis, numbers.output_axis))
    return (*(n for n, a in zip(shape, axes) if a in STACKED), *sides)


def is_axes(x: Any) -> bool:
    return isinstance(x, tuple)


def map_axes(function: Callable[[tuple], Any], axes: Any) -> Any:
    """Apply a function to every tuple of axes of a tree."""
    return jax.tree.map(function, axes, is_leaf=is_axes)


def is_matrix(axes: tuple) -> bool:
    """Return whether an array is a matrix or table: an embed axis, or a LoRA factor's rank, and at least one more."""
    return bool({"embed", "rank"} & set(axes)) and len([a for a in axes if a not in STACKED]) > 1


def is_hidden(axes: tuple) -> bool:
    """Return whether an array is a matrix inside the stack: no table of tokens or positions."""
    return is_matrix(axes) and not {"vocab", "position"} & set(axes)
