"""Config -> optax chain. The chain gives the step of unit learning rate; the train step multiplies by the rate.

Keeping the rate outside makes it a function of the step alone, the same for every rule, and logged as it is used.
"""

from typing import Any

import jax
import optax
from optax import contrib

from lm.config import Optimizer


def build(config: Optimizer, axes: Any, hidden_scale: float = 1.0) -> optax.GradientTransformation:
    """Chain clipping, the rule, muP's factor and decoupled decay.

    `axes`: tree of logical axes, as the parameters. `hidden_scale` multiplies the update of hidden matrices (muP, Yang
    et al. 2022, table 8: base width / width for Adam-like rules); decay is not scaled with it.
    """
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    parts.append(rule(config, axes))
    if hidden_scale != 1.0:
        scales = map_axes(lambda a: hidden_scale if is_hidden(a) else 1.0, axes)
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales)))
    if config.decay:
        parts.append(optax.add_decayed_weights(config.decay, mask=map_axes(is_matrix, axes)))
    return optax.chain(*parts, optax.scale(-1.0))


def rule(config: Optimizer, axes: Any) -> optax.GradientTransformation:
    """Pick the update rule."""
    b1, b2 = config.betas
    if config.name == "adamw":  # Loshchilov & Hutter 2019
        return optax.scale_by_adam(b1, b2, config.eps)
    if config.name == "lion":  # Chen et al. 2023
        return optax.scale_by_lion(b1, b2)
    if config.name == "sgd":
        return optax.trace(config.momentum) if config.momentum else optax.identity()
    if config.name == "adafactor":  # Shazeer & Stern 2018; factored, updates clipped at RMS 1, relative to the parameter
        return optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        )
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
    return optax.chain(muon, optax.scale(-1.0))


def matrix_axes(axes: tuple) -> contrib.MuonDimensionNumbers | None:
    """Say which axes of a hidden matrix are its inputs and which its outputs; stacked layers are separate matrices."""
    if not is_hidden(axes):
        return None
    rest = tuple(i for i, a in enumerate(axes) if a not in ("embed", "layers"))
    embed = (axes.index("embed"),)
    inputs, outputs = (embed, rest) if embed < rest else (rest, embed)
    return contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=outputs)


def map_axes(function: Any, axes: Any) -> Any:
    """Apply a function to every tuple of axes of a tree."""
    return jax.tree.map(function, axes, is_leaf=lambda x: isinstance(x, tuple))


def is_matrix(axes: tuple) -> bool:
    """Tell the matrices and tables (an embed axis and another one) from norms and biases."""
    return "embed" in axes and len([a for a in axes if a != "layers"]) > 1


def is_hidden(axes: tuple) -> bool:
    """Tell the matrices inside the stack from the tables of tokens and positions."""
    return is_matrix(axes) and not {"vocab", "position"} & set(axes)
