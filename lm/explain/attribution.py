"""Inside a network on one text: attention, hidden states after every layer, and attributions of predictions to inputs.

No network is written again here. Its layers `sow` attention weights and hidden states on request; gradients are taken with
respect to token vectors, which replace the table's in the embedding look-up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from numpy.typing import ArrayLike

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Head
from lm.models.model import Model
from lm.models.norms import Norm
from lm.models.transformer import Transformer

CHUNK = 16  # rows of one pass
Params = Mapping[str, Any]  # a tree of arrays
Sides = tuple[np.ndarray, ...]  # arrays of an encoder's input, where there is one, and of the predicting stack's


Rows = TypeVar("Rows", contravariant=True)  # arrays with a leading axis R: an objective's batch, or a network's sides


class Scorer(Protocol[Rows]):
    """A network with a score of each row of a batch, (R,); hashable, as a static argument is.

    `vectors` (R, T, E) of each side replace the embeddings. `positions_R` and `ids_R`
    (R, ...) name the prediction that is scored.
    """

    def score(
        self, params: Params, batch: Rows, vectors: tuple[jax.Array, ...], positions_R: jax.Array, ids_R: jax.Array
    ) -> jax.Array: ...


@contextlib.contextmanager
def replaced_embeddings(vectors: tuple[jax.Array, ...] | None) -> Iterator[None]:
    """Let the look-ups in the token table return these vectors, in the network's order; None: leave them alone."""
    given = iter(vectors or ())

    def instead(next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if vectors is not None and context.module.name == "embed" and context.method_name == "__call__":
            return next(given)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(instead):
        yield


def embed(params: Params, sides: Sequence[np.ndarray]) -> Sides:
    """Look up token vectors, float32 (R, T, E) of each side."""
    return tuple(np.asarray(params["embed"]["table"][side], np.float32) for side in sides)


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
        self,
        params: Params,
        sides: Sequence[Any],
        vectors: tuple[Any, ...] | None = None,
        look: bool = False,
        types_RT: jax.Array | None = None,
    ) -> Any:
        """Return the last hidden states (R, T, D), with `look` the sown values too; `vectors` (R, T, E) replace embeddings.

        `types_RT`: token types, of a single stack.
        """
        module = Seq2Seq(self.model) if isinstance(self.model, EncoderDecoder) else Model(self.model)
        types = {} if types_RT is None else {"types_BT": types_RT}
        with replaced_embeddings(vectors):
            mutable = ["intermediates"] if look else False
            output = module.apply({"params": params}, *sides, causal=self.causal, mutable=mutable, **types)
        output, seen = output if look else (output, None)
        h_RTD = output[0] if isinstance(output, tuple) else output
        return (h_RTD, seen["intermediates"]) if look else h_RTD

    def score(
        self, params: Params, batch: Sequence[Any], vectors: tuple[jax.Array, ...], positions_R: jax.Array, ids_R: jax.Array
    ) -> jax.Array:
        """Compute log p of `ids_R` at `positions_R` (R,)."""
        h_RTD = self.read(params, batch, vectors)
        h_RD = jnp.take_along_axis(h_RTD, positions_R[:, None, None], 1)[:, 0]
        log_RV = jax.nn.log_softmax(self.logits(params, h_RD))
        return jnp.take_along_axis(log_RV, ids_R[:, None], 1)[:, 0]

    def log_probabilities(self, params: Params, batch: Sequence[Any], picks: tuple[jax.Array, ...]) -> jax.Array:
        """Return log p of predictions, (P,); `picks`: their rows, positions and ids, int32 (P,) each."""
        rows_P, positions_P, ids_P = picks
        log_PV = jax.nn.log_softmax(self.logits(params, self.read(params, batch)[rows_P, positions_P]))
        return jnp.take_along_axis(log_PV, ids_P[:, None], 1)[:, 0]

    def loss(self, params: Params, batch: Sequence[Any], picks: tuple[jax.Array, ...]) -> jax.Array:
        """Return the mean of -log p of predictions, in nats."""
        return -self.log_probabilities(params, batch, picks).mean()

    def logits(self, params: Params, h: jax.Array) -> jax.Array:
        """Turn last hidden states (..., D) into logits (..., V)."""
        if isinstance(self.model, EncoderDecoder):
            return Seq2Seq(self.model).apply({"params": params}, method="head").logits(h)
        model, variables = Model(self.model), {"params": params}
        head: Head = model.apply(variables, method="head")
        return head.logits(model.apply(variables, h, method="transform"))

    def finish(self, params: Params, h: jax.Array) -> jax.Array:
        """Apply the final norm, where the stack has one, to hidden states between layers."""
        c = self.last
        if c.placement == "post":
            return h
        return Norm(kind=c.norm, eps=c.eps, bias=c.bias).apply({"params": params[self.stack]["norm"]}, h)


@partial(jax.jit, static_argnums=0)
def observe(
    network: Network, params: Params, sides: Sequence[jax.Array], types_RT: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Run rows; return last hidden states (R, T, D), those before and after every layer (L + 1, R, T, D), attention by name."""
    h_RTD, seen = network.read(params, sides, look=True, types_RT=types_RT)
    sown = seen[network.stack]
    names = {"stack": "attention", "encoder": "encoder", "decoder": "decoder"}
    attention = {names[name]: stack["layers"]["attention"]["weights"][0] for name, stack in seen.items() if name in names}
    if "cross" in sown["layers"]:
        attention["decoder to source"] = sown["layers"]["cross"]["weights"][0]
    return h_RTD, states_of(sown), attention


def states_of(sown: Mapping[str, Any]) -> jax.Array:
    """Stack the states before and after every layer of what a stack has sown, (L + 1, R, T, D)."""
    return jnp.concatenate([sown["input"][0][None], sown["layers"]["states"][0]])


@partial(jax.jit, static_argnums=(0, 4))
def lens(
    network: Network, params: Params, h_PD: jax.Array, ids_P: jax.Array, top: int, final_P: jax.Array | None = None
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
    scorer: Scorer[Rows], params: Params, batch: Rows, vectors: tuple[jax.Array, ...], positions_R: jax.Array, ids_R: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Compute the score of each row (R,), and its gradients with respect to the row's vectors."""

    def score(vectors: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        score_R = scorer.score(params, batch, vectors, positions_R, ids_R)
        return score_R.sum(), score_R  # rows are independent: the sum's gradient is each row's own

    (_, score_R), gradients = jax.value_and_grad(score, has_aux=True)(vectors)
    return score_R, gradients


def gradients(
    scorer: Scorer[Rows], params: Params, batch: Rows, vectors: Sides, positions: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, Sides]:
    """Run `score_and_gradient` in chunks; the last one repeats its last row, so that one compiled program serves all."""
    count, scores, slopes = len(positions), [], []
    size = min(CHUNK, count)
    for low in range(0, count, size):
        rows = np.minimum(np.arange(low, low + size), count - 1)
        part = jax.tree.map(lambda x, rows=rows: x[rows], (batch, vectors))
        score, gradient = score_and_gradient(scorer, params, *part, positions[rows], ids[rows])
        real = min(size, count - low)
        scores.append(np.asarray(score)[:real])
        slopes.append([np.asarray(g)[:real] for g in gradient])
    return np.concatenate(scores), tuple(np.concatenate(side) for side in zip(*slopes))


def gradient_times_input(
    scorer: Scorer[Rows], params: Params, batch: Rows, vectors: Sides, positions: Sequence[int], ids: ArrayLike
) -> np.ndarray:
    """Attribute the score of each row to its input tokens by gradient x vector (Shrikumar et al. 2016): float (R, S + T)."""
    _, slopes = gradients(scorer, params, batch, vectors, np.asarray(positions), np.asarray(ids))
    return np.concatenate([(g * x).sum(-1) for g, x in zip(slopes, vectors)], 1)


@dataclass(frozen=True)
class Integrated:
    """Integrated gradients of one prediction: a number a token, which add up to `difference` but for the quadrature's error."""

    values: np.ndarray  # (S + T,)
    difference: float  # the score of the text less that of the baseline
    steps: int

    @property
    def gap(self) -> float:
        """Return the missing share of the difference: the quadrature's relative error."""
        return abs(float(self.values.sum()) - self.difference) / max(abs(self.difference), 1e-6)


def integrated_gradients(
    scorer: Scorer[Rows], params: Params, batch: Rows, vectors: Sides, position: int, id: ArrayLike, baseline_E: np.ndarray,
    tolerance: float = 0.01, most: int = 1024,
) -> Integrated:  # fmt: skip
    """Integrate the gradient along the line from a baseline vector, the same for all tokens, to the text (Sundararajan
    et al. 2017, equation 1), by Gauss-Legendre quadrature with 32 points, doubled until the gap is within `tolerance`.

    `batch` and `vectors` have one row.
    """

    def at(path: Sides) -> tuple[np.ndarray, Sides]:
        rows = len(path[0])
        repeated = jax.tree.map(lambda x: np.repeat(x, rows, 0), batch)
        return gradients(scorer, params, repeated, path, np.full(rows, position), np.repeat(np.asarray(id)[None], rows, 0))

    begins = tuple(np.broadcast_to(baseline_E, end.shape).astype(np.float32) for end in vectors)
    (text, base), _ = at(tuple(np.concatenate(pair) for pair in zip(vectors, begins)))

    # More points until the values add up to the difference (completeness), which checks the quadrature.
    points = 32
    while True:
        nodes, weights = np.polynomial.legendre.leggauss(points)
        along = ((nodes + 1) / 2).astype(np.float32)[:, None, None]
        _, slopes = at(tuple(begin + along * (end - begin) for begin, end in zip(begins, vectors)))
        means = [np.tensordot(weights / 2, g.astype(np.float64), 1) for g in slopes]
        values = [(mean * (end - begin)[0]).sum(-1) for mean, begin, end in zip(means, begins, vectors)]
        result = Integrated(np.concatenate(values), float(text - base), points)
        if result.gap <= tolerance or points >= most:
            return result
        points *= 2


def baseline_of(baseline: str, params: Params, tokenizer: Tokenizer) -> np.ndarray:
    """Return the vector where integrated gradients start, (E,): the table's "mean", "zero", or a token's."""
    table = np.asarray(params["embed"]["table"], np.float32)[: tokenizer.vocab]
    if baseline in ("mean", "zero"):
        return table.mean(0) if baseline == "mean" else np.zeros_like(table[0])
    token = tokenizer.token_id(baseline)
    check(token is not None, f"--baseline={baseline}: use mean, zero, or a token of the vocabulary ([MASK], [PAD])")
    return table[token]


def rollout(weights_LNTT: np.ndarray) -> np.ndarray:
    """Multiply attention through the layers, with residual connections as one half (Abnar & Zuidema 2020): (L, T, T)."""
    flow, flows = np.eye(weights_LNTT.shape[-1]), []
    for layer in weights_LNTT.mean(1):
        flow = (layer / 2 + np.eye(len(layer)) / 2) @ flow
        flows.append(flow)
    return np.stack(flows)
