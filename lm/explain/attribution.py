"""What a network does inside with one text: attention, states after every layer, and what each input adds to a prediction.

Nothing of a network is written again here. Attention weights and states are what its layers `sow` when somebody looks on;
gradients are taken with respect to token vectors, which stand in for the table's where the network looks tokens up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Head
from lm.models.model import Model
from lm.models.norms import Norm
from lm.models.transformer import Transformer

CHUNK = 16  # rows that go through the network at once


@dataclass(frozen=True)
class Inputs:
    """Rows that a network reads: int32 (R, T), an encoder-decoder's source (1, S) beside them."""

    tokens: np.ndarray
    source: np.ndarray | None = None

    def sides(self) -> tuple[np.ndarray, ...]:
        """Give what is looked up in the table, in the network's order."""
        return (self.tokens,) if self.source is None else (self.source, self.tokens)

    def take(self, rows: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Give the sides of some rows."""
        return tuple(np.repeat(side, len(rows), 0) if len(side) == 1 else side[list(rows)] for side in self.sides())


@dataclass(frozen=True)
class Network:
    """A Transformer, or an encoder-decoder; `causal` as its objective reads text. Hashable: a static argument."""

    model: Transformer | EncoderDecoder
    causal: bool

    @property
    def last(self) -> Transformer:
        """The stack that predicts."""
        return self.model.decoder if isinstance(self.model, EncoderDecoder) else self.model

    @property
    def stack(self) -> str:
        """Name of its parameters."""
        return "decoder" if isinstance(self.model, EncoderDecoder) else "stack"

    def read(self, params: Any, sides: tuple[Any, ...], vectors: tuple[Any, ...] | None = None, look: bool = False):
        """Return the last states (R, T, D), and with `look` what the layers sow; `vectors` (R, T, E) stand in for tokens'."""
        module = Seq2Seq(self.model) if isinstance(self.model, EncoderDecoder) else Model(self.model)
        given = iter(vectors or ())

        def instead(next_call, args, kwargs, context):
            if vectors is not None and context.module.name == "embed" and context.method_name == "__call__":
                return next(given)
            return next_call(*args, **kwargs)

        with nn.intercept_methods(instead):
            mutable = ["intermediates"] if look else False
            found = module.apply({"params": params}, *sides, causal=self.causal, mutable=mutable)
        found, seen = found if look else (found, None)
        h_RTD = found[0] if isinstance(found, tuple) else found
        return (h_RTD, seen["intermediates"]) if look else h_RTD

    def logits(self, params: Any, h: jax.Array) -> jax.Array:
        """Turn last states (..., D) into logits (..., V)."""
        if isinstance(self.model, EncoderDecoder):
            return Seq2Seq(self.model).apply({"params": params}, method="head").logits(h)
        model, variables = Model(self.model), {"params": params}
        head: Head = model.apply(variables, method="head")
        return head.logits(model.apply(variables, h, method="transform"))

    def finish(self, params: Any, h: jax.Array) -> jax.Array:
        """Turn states between layers into last states: the norm at the end, where the stack has one."""
        c = self.last
        if c.placement == "post":
            return h
        return Norm(kind=c.norm, eps=c.eps, bias=c.bias).apply({"params": params[self.stack]["norm"]}, h)

    def embed(self, params: Any, sides: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Look token vectors up."""
        return tuple(np.asarray(params["embed"]["table"], np.float32)[side] for side in sides)


@partial(jax.jit, static_argnums=0)
def observe(network: Network, params: Any, sides: tuple[jax.Array, ...]):
    """Run rows: last states (R, T, D), states before and after every layer (L + 1, R, T, D), attention by its name."""
    h_RTD, seen = network.read(params, sides, look=True)
    mine = seen[network.stack]
    states = jnp.concatenate([mine["input"][0][None], mine["layers"]["states"][0]])
    names = {"stack": "attention", "encoder": "encoder", "decoder": "decoder"}
    attention = {names[name]: found["layers"]["attention"]["weights"][0] for name, found in seen.items() if name in names}
    if "cross" in mine["layers"]:
        attention["decoder to source"] = mine["layers"]["cross"]["weights"][0]
    return h_RTD, states, attention


@partial(jax.jit, static_argnums=(0, 4))
def lens(network: Network, params: Any, h_PD: jax.Array, ids_P: jax.Array, top: int, final_P: jax.Array | None = None):
    """Read states as predictions: (p [P, top], ids [P, top], log p of `ids_P`, entropy in nats, rank of `final_P`, from 1)."""
    logits_PV = network.logits(params, h_PD)
    log_PV = jax.nn.log_softmax(logits_PV)
    p, best = jax.lax.top_k(log_PV, top)
    ids_P = jnp.where(ids_P < 0, best[:, 0], ids_P)
    final_P = best[:, 0] if final_P is None else final_P
    entropy_P = -jnp.where(log_PV > -1e30, jnp.exp(log_PV) * log_PV, 0).sum(-1)
    rank_P = 1 + (log_PV > jnp.take_along_axis(log_PV, final_P[:, None], 1)).sum(-1)
    return jnp.exp(p), best, jnp.take_along_axis(log_PV, ids_P[:, None], 1)[:, 0], entropy_P, rank_P


@partial(jax.jit, static_argnums=0)
def score_and_gradient(network: Network, params: Any, sides, vectors, places_R, ids_R):
    """Give log p of `ids_R` at `places_R` for rows of vectors, and its gradients with respect to them."""

    def score(vectors):
        h_RTD = network.read(params, sides, vectors)
        h_RD = jnp.take_along_axis(h_RTD, places_R[:, None, None], 1)[:, 0]
        log_RV = jax.nn.log_softmax(network.logits(params, h_RD))
        found_R = jnp.take_along_axis(log_RV, ids_R[:, None], 1)[:, 0]
        return found_R.sum(), found_R  # rows know nothing of each other: the sum's gradient is each row's own

    (_, found_R), gradients = jax.value_and_grad(score, has_aux=True)(vectors)
    return found_R, gradients


def gradients(network: Network, params: Any, sides, vectors, places, ids):
    """The same for any number of rows, a chunk at a time; the last chunk is filled up, so that one program serves all."""
    count, scores, found = len(places), [], []
    size = min(CHUNK, count)
    for low in range(0, count, size):
        rows = np.minimum(np.arange(low, low + size), count - 1)
        part = [tuple(x[rows] for x in group) for group in (sides, vectors)]
        one, gradient = score_and_gradient(network, params, *part, np.asarray(places)[rows], np.asarray(ids)[rows])
        real = min(size, count - low)
        scores.append(np.asarray(one)[:real])
        found.append([np.asarray(g)[:real] for g in gradient])
    return np.concatenate(scores), tuple(np.concatenate(side) for side in zip(*found))


def gradient_times_input(network: Network, params: Any, inputs: Inputs, rows, places, ids) -> np.ndarray:
    """Weigh each input token by gradient x vector (Shrikumar et al. 2016): float (P, S + T)."""
    sides = inputs.take(rows)
    vectors = network.embed(params, sides)
    _, found = gradients(network, params, sides, vectors, places, ids)
    return np.concatenate([(g * x).sum(-1) for g, x in zip(found, vectors)], 1)


@dataclass(frozen=True)
class Integrated:
    """Integrated gradients of one prediction: a number a token, which add up to `difference` but for the quadrature's error."""

    values: np.ndarray  # (S + T,)
    difference: float  # log p with the text less log p with the baseline
    steps: int

    @property
    def gap(self) -> float:
        """What is missing of the difference, as a share of it."""
        return abs(float(self.values.sum()) - self.difference) / max(abs(self.difference), 1e-6)


def integrated_gradients(
    network: Network, params: Any, inputs: Inputs, row: int, place: int, token: int, baseline_E: np.ndarray,
    tolerance: float = 0.01, most: int = 1024,
) -> Integrated:  # fmt: skip
    """Integrate the gradient along the line from a baseline vector, the same for all tokens, to the text (Sundararajan
    et al. 2017, equation 1), by Gauss-Legendre quadrature with 32 points, doubled until the gap is within `tolerance`.
    """
    sides = inputs.take([row])
    ends = network.embed(params, sides)
    begins = tuple(np.broadcast_to(baseline_E, end.shape).astype(np.float32) for end in ends)
    both = tuple(np.concatenate([end, begin]) for end, begin in zip(ends, begins))
    (text, base), _ = gradients(network, params, inputs.take([row, row]), both, [place] * 2, [token] * 2)
    points = 32
    while True:
        nodes, weights = np.polynomial.legendre.leggauss(points)
        at = ((nodes + 1) / 2).astype(np.float32)[:, None, None]
        path = tuple(begin + at * (end - begin) for begin, end in zip(begins, ends))
        _, found = gradients(network, params, inputs.take([row] * points), path, [place] * points, [token] * points)
        means = [np.tensordot(weights / 2, g.astype(np.float64), 1) for g in found]
        values = [(mean * (end - begin)[0]).sum(-1) for mean, begin, end in zip(means, begins, ends)]
        result = Integrated(np.concatenate(values), float(text - base), points)
        if result.gap <= tolerance or points >= most:
            return result
        points *= 2


def rollout(weights_LNTT: np.ndarray) -> np.ndarray:
    """Follow attention through the layers, residual connections counting one half (Abnar & Zuidema 2020): (L, T, T)."""
    found, result = np.eye(weights_LNTT.shape[-1]), []
    for layer in weights_LNTT.mean(1):
        found = (layer / 2 + np.eye(len(layer)) / 2) @ found
        result.append(found)
    return np.stack(result)
