"""Inside a network on one text: attention, hidden states after every layer, and attributions of predictions to inputs.

No network is written again here. Its layers `sow` attention weights and hidden states on request; gradients are taken with
respect to token vectors, which replace the table's in the embedding look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

CHUNK = 16  # rows of one pass
Sides = tuple[np.ndarray, ...]  # arrays of an encoder's input, where there is one, and of the predicting stack's


@dataclass(frozen=True)
class Inputs:
    """Input rows of a network: int32 (R, T), an encoder-decoder's source (1, S) beside them."""

    tokens: np.ndarray
    source: np.ndarray | None = None

    def sides(self) -> tuple[np.ndarray, ...]:
        """Return the ids that are embedded, in the network's order."""
        return (self.tokens,) if self.source is None else (self.source, self.tokens)

    def take(self, rows: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Return `sides` of some rows."""
        return tuple(np.repeat(side, len(rows), 0) if len(side) == 1 else side[list(rows)] for side in self.sides())


@dataclass(frozen=True)
class Network:
    """A Transformer, or an encoder-decoder; `causal` as its objective reads text. Hashable: a static argument."""

    model: Transformer | EncoderDecoder
    causal: bool

    @property
    def last(self) -> Transformer:
        """Return the stack that predicts."""
        return self.model.decoder if isinstance(self.model, EncoderDecoder) else self.model

    @property
    def stack(self) -> str:
        """Return the name of its parameters."""
        return "decoder" if isinstance(self.model, EncoderDecoder) else "stack"

    def read(
        self, params: Any, sides: tuple[Any, ...], vectors: tuple[Any, ...] | None = None, look: bool = False
    ) -> Any:
        """Return the last hidden states (R, T, D), with `look` the sown values too; `vectors` (R, T, E) replace embeddings."""
        module = Seq2Seq(self.model) if isinstance(self.model, EncoderDecoder) else Model(self.model)
        given = iter(vectors or ())

        def instead(next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if vectors is not None and context.module.name == "embed" and context.method_name == "__call__":
                return next(given)
            return next_call(*args, **kwargs)

        with nn.intercept_methods(instead):
            mutable = ["intermediates"] if look else False
            output = module.apply({"params": params}, *sides, causal=self.causal, mutable=mutable)
        output, seen = output if look else (output, None)
        h_RTD = output[0] if isinstance(output, tuple) else output
        return (h_RTD, seen["intermediates"]) if look else h_RTD

    def logits(self, params: Any, h: jax.Array) -> jax.Array:
        """Turn last hidden states (..., D) into logits (..., V)."""
        if isinstance(self.model, EncoderDecoder):
            return Seq2Seq(self.model).apply({"params": params}, method="head").logits(h)
        model, variables = Model(self.model), {"params": params}
        head: Head = model.apply(variables, method="head")
        return head.logits(model.apply(variables, h, method="transform"))

    def finish(self, params: Any, h: jax.Array) -> jax.Array:
        """Apply the final norm, where the stack has one, to hidden states between layers."""
        c = self.last
        if c.placement == "post":
            return h
        return Norm(kind=c.norm, eps=c.eps, bias=c.bias).apply({"params": params[self.stack]["norm"]}, h)

    def embed(self, params: Any, sides: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Look up token vectors, float32."""
        return tuple(np.asarray(params["embed"]["table"], np.float32)[side] for side in sides)


@partial(jax.jit, static_argnums=0)
def observe(
    network: Network, params: Any, sides: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Run rows; return last hidden states (R, T, D), those before and after every layer (L + 1, R, T, D), attention by name."""
    h_RTD, seen = network.read(params, sides, look=True)
    sown = seen[network.stack]
    states = jnp.concatenate([sown["input"][0][None], sown["layers"]["states"][0]])
    names = {"stack": "attention", "encoder": "encoder", "decoder": "decoder"}
    attention = {names[name]: stack["layers"]["attention"]["weights"][0] for name, stack in seen.items() if name in names}
    if "cross" in sown["layers"]:
        attention["decoder to source"] = sown["layers"]["cross"]["weights"][0]
    return h_RTD, states, attention


@partial(jax.jit, static_argnums=(0, 4))
def lens(
    network: Network, params: Any, h_PD: jax.Array, ids_P: jax.Array, top: int, final_P: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """Decode states (logit lens): (p [P, top], ids [P, top], log p of `ids_P`, entropy in nats, rank of `final_P`, from 1)."""
    logits_PV = network.logits(params, h_PD)
    log_PV = jax.nn.log_softmax(logits_PV)
    p, best = jax.lax.top_k(log_PV, top)
    ids_P = jnp.where(ids_P < 0, best[:, 0], ids_P)
    final_P = best[:, 0] if final_P is None else final_P
    entropy_P = -jnp.where(log_PV > -1e30, jnp.exp(log_PV) * log_PV, 0).sum(-1)
    rank_P = 1 + (log_PV > jnp.take_along_axis(log_PV, final_P[:, None], 1)).sum(-1)
    return jnp.exp(p), best, jnp.take_along_axis(log_PV, ids_P[:, None], 1)[:, 0], entropy_P, rank_P


@partial(jax.jit, static_argnums=0)
def score_and_gradient(
    network: Network, params: Any, sides: tuple[jax.Array, ...], vectors: tuple[jax.Array, ...], positions_R: jax.Array,
    ids_R: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:  # fmt: skip
    """Compute log p of `ids_R` at `positions_R` for rows of vectors, and its gradients with respect to them."""

    def score(vectors: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        h_RTD = network.read(params, sides, vectors)
        h_RD = jnp.take_along_axis(h_RTD, positions_R[:, None, None], 1)[:, 0]
        log_RV = jax.nn.log_softmax(network.logits(params, h_RD))
        target_R = jnp.take_along_axis(log_RV, ids_R[:, None], 1)[:, 0]
        return target_R.sum(), target_R  # rows are independent: the sum's gradient is each row's own

    (_, target_R), gradients = jax.value_and_grad(score, has_aux=True)(vectors)
    return target_R, gradients


def gradients(
    network: Network, params: Any, sides: Sides, vectors: Sides, positions: Sequence[int], ids: Sequence[int]
) -> tuple[np.ndarray, Sides]:
    """Run `score_and_gradient` in chunks; the last one repeats its last row, so that one compiled program serves all."""
    count, scores, slopes = len(positions), [], []
    size = min(CHUNK, count)
    for low in range(0, count, size):
        rows = np.minimum(np.arange(low, low + size), count - 1)
        part = [tuple(x[rows] for x in group) for group in (sides, vectors)]
        score, gradient = score_and_gradient(network, params, *part, np.asarray(positions)[rows], np.asarray(ids)[rows])
        real = min(size, count - low)
        scores.append(np.asarray(score)[:real])
        slopes.append([np.asarray(g)[:real] for g in gradient])
    return np.concatenate(scores), tuple(np.concatenate(side) for side in zip(*slopes))


def gradient_times_input(
    network: Network, params: Any, inputs: Inputs, rows: Sequence[int], positions: Sequence[int], ids: Sequence[int]
) -> np.ndarray:
    """Attribute a prediction to each input token by gradient x vector (Shrikumar et al. 2016): float (P, S + T)."""
    sides = inputs.take(rows)
    vectors = network.embed(params, sides)
    _, slopes = gradients(network, params, sides, vectors, positions, ids)
    return np.concatenate([(g * x).sum(-1) for g, x in zip(slopes, vectors)], 1)


@dataclass(frozen=True)
class Integrated:
    """Integrated gradients of one prediction: a number a token, which add up to `difference` but for the quadrature's error."""

    values: np.ndarray  # (S + T,)
    difference: float  # log p with the text less log p with the baseline
    steps: int

    @property
    def gap(self) -> float:
        """Return the missing share of the difference: the quadrature's relative error."""
        return abs(float(self.values.sum()) - self.difference) / max(abs(self.difference), 1e-6)


def integrated_gradients(
    network: Network, params: Any, inputs: Inputs, row: int, position: int, token: int, baseline_E: np.ndarray,
    tolerance: float = 0.01, most: int = 1024,
) -> Integrated:  # fmt: skip
    """Integrate the gradient along the line from a baseline vector, the same for all tokens, to the text (Sundararajan
    et al. 2017, equation 1), by Gauss-Legendre quadrature with 32 points, doubled until the gap is within `tolerance`.
    """
    sides = inputs.take([row])
    ends = network.embed(params, sides)
    begins = tuple(np.broadcast_to(baseline_E, end.shape).astype(np.float32) for end in ends)
    both = tuple(np.concatenate([end, begin]) for end, begin in zip(ends, begins))
    (text, base), _ = gradients(network, params, inputs.take([row, row]), both, [position] * 2, [token] * 2)

    # More points until the values add up to the difference (completeness), which checks the quadrature.
    points = 32
    while True:
        nodes, weights = np.polynomial.legendre.leggauss(points)
        at = ((nodes + 1) / 2).astype(np.float32)[:, None, None]
        path = tuple(begin + at * (end - begin) for begin, end in zip(begins, ends))
        _, slopes = gradients(network, params, inputs.take([row] * points), path, [position] * points, [token] * points)
        means = [np.tensordot(weights / 2, g.astype(np.float64), 1) for g in slopes]
        values = [(mean * (end - begin)[0]).sum(-1) for mean, begin, end in zip(means, begins, ends)]
        result = Integrated(np.concatenate(values), float(text - base), points)
        if result.gap <= tolerance or points >= most:
            return result
        points *= 2


def rollout(weights_LNTT: np.ndarray) -> np.ndarray:
    """Multiply attention through the layers, with residual connections as one half (Abnar & Zuidema 2020): (L, T, T)."""
    flow, flows = np.eye(weights_LNTT.shape[-1]), []
    for layer in weights_LNTT.mean(1):
        flow = (layer / 2 + np.eye(len(layer)) / 2) @ flow
        flows.append(flow)
    return np.stack(flows)
