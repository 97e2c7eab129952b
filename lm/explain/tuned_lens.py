"""The tuned lens: an affine translator of each layer's states, which predicts the last layer's distribution.

Belrose et al. 2023 ("Eliciting Latent Predictions from Transformers with the Tuned Lens"). The logit lens reads a layer's
states as if they were the last; a translator first takes out what differs between the layers' bases.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lm.config import Config
from lm.data.corpus.prepare import prepare
from lm.data.files import Files
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check
from lm.explain.attribution import Network, Params, observe
from lm.models.encoder_decoder import EncoderDecoder
from lm.objectives.base import Objective

FILE = "tuned_lens.safetensors"
TOKENS = 500_000  # of text, at most
WIDTH, ROWS = 256, 8  # tokens of a row, rows of a step
MASKED = 0.15  # share of a masked model's tokens that are predicted


@dataclass(frozen=True)
class Translators:
    """h + h W + b for the states after the embeddings and after every layer but the last: (L, D, D), (L, D)."""

    weights_LDD: jax.Array
    biases_LD: jax.Array

    def __call__(self, level: int, h: jax.Array) -> jax.Array:
        """Translate states (..., D) of a level, 0 being the embeddings, to the last layer's."""
        return translated(self.weights_LDD[level], self.biases_LD[level], h)


def translated(weights_DD: jax.Array, biases_D: jax.Array, h: jax.Array) -> jax.Array:
    return h + h @ weights_DD + biases_D


@dataclass(frozen=True)
class Text:
    """Rows of ids int32 (R, T), and the positions of the predictions that are compared, (R, P)."""

    rows_RT: np.ndarray
    positions_RP: np.ndarray


def text_rows(objective: Objective, network: Network, tokenizer: Tokenizer, ids: np.ndarray, seed: int = 0) -> Text:
    """Cut ids into rows as the network reads them; a masked model predicts masks at random positions of each."""
    width, rng = min(WIDTH, network.model.context), np.random.default_rng(seed)
    lead = list(objective.lead(tokenizer)) if network.causal else [tokenizer.special_id("[CLS]")]
    tail = [] if network.causal else [tokenizer.special_id("[SEP]")]
    inner = width - len(lead) - len(tail)
    count = len(ids) // inner
    check(count > 0, f"the text of the lens has {len(ids)} tokens, less than a row of {inner}: give more")
    parts = ids[: count * inner].reshape(count, inner)
    around = [np.tile(np.array(side, np.int32), (count, 1)) for side in (lead, tail)]
    rows = np.concatenate([around[0], parts, around[1]], 1).astype(np.int32)
    if network.causal:
        return Text(rows, np.tile(np.arange(len(lead), width), (count, 1)))
    hidden = np.argsort(rng.random((count, inner)), 1)[:, : max(1, round(MASKED * inner))] + len(lead)
    np.put_along_axis(rows, hidden, tokenizer.special_id("[MASK]"), 1)
    return Text(rows, hidden)


@partial(jax.jit, static_argnums=0)
def divergences(
    network: Network, params: Params, rows_RT: jax.Array, positions_RP: jax.Array, translators: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Return KL(last layer || lens) of every level in nats, a mean over the positions, (L,)."""
    levels = pairs(network, params, rows_RT, positions_RP, translators)
    return jax.lax.map(lambda level: divergence(network, params, *level), levels)


def pairs(
    network: Network, params: Params, rows_RT: jax.Array, positions_RP: jax.Array, translators: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    """Return for every level its translator, its states at the positions (R P, D), and the last ones, without gradients."""
    h_RTD, states, _ = observe(network, params, (rows_RT,))
    at = positions_RP[..., None]
    last_PD = jnp.take_along_axis(h_RTD, at, 1).reshape(-1, h_RTD.shape[-1])
    states_LPD = jnp.take_along_axis(states[:-1], at[None], 2).reshape(len(states) - 1, *last_PD.shape)
    return (*translators, states_LPD, jnp.broadcast_to(last_PD, states_LPD.shape))


def divergence(
    network: Network, params: Params, weights_DD: jax.Array, biases_D: jax.Array, h_PD: jax.Array, last_PD: jax.Array
) -> jax.Array:
    """Return the mean of KL(last layer || lens) over states."""
    final_PV = jax.nn.log_softmax(network.logits(params, last_PD))
    lens_PV = jax.nn.log_softmax(network.logits(params, network.finish(params, translated(weights_DD, biases_D, h_PD))))
    # Rows of a padded vocabulary have log-probabilities of about -1e30, and probability 0.
    return jnp.where(final_PV > -1e20, jnp.exp(final_PV) * (final_PV - lens_PV), 0).sum(-1).mean()


def train(
    objective: Objective, params: Params, tokenizer: Tokenizer, ids: np.ndarray, *, steps: int = 300, rate: float = 2e-3,
    seed: int = 0,
) -> Translators:  # fmt: skip
    """Train translators by Adam on KL, from the identity, which is the logit lens; the rate falls to 0.

    `ids`: tokens of running text. Raises UserError for encoder-decoders, whose targets need sources.
    """
    network = network_of(objective)
    text = text_rows(objective, network, tokenizer, ids, seed)
    lens = identity(network)
    start = lens.weights_LDD, lens.biases_LD
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    one = jax.value_and_grad(lambda w, b, h, last, params: divergence(network, params, w, b, h, last), argnums=(0, 1))

    @jax.jit
    def step(
        translators: tuple[jax.Array, jax.Array], state: optax.OptState, params: Params, rows_RT: jax.Array,
        positions_RP: jax.Array,
    ) -> tuple[tuple[jax.Array, jax.Array], optax.OptState]:  # fmt: skip
        # A level at a time: the logits of all levels at once would not fit.
        given = pairs(network, params, rows_RT, positions_RP, translators)
        _, slopes = jax.lax.map(lambda level: one(*level, params), given)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(translators, updates), state

    translators, state, rng = start, optimizer.init(start), np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, len(text.rows_RT), ROWS)
        translators, state = step(translators, state, params, text.rows_RT[rows], text.positions_RP[rows])
    return Translators(*translators)


def identity(network: Network) -> Translators:
    """Return the translators of the logit lens, which change nothing."""
    depth, width = network.last.depth, network.last.width
    return Translators(jnp.zeros((depth, width, width)), jnp.zeros((depth, width)))


def network_of(objective: Objective) -> Network:
    """Return the network whose layers are translated; raises UserError for others than single stacks."""
    causal = objective.writes == "text"
    fits = not isinstance(objective.model, EncoderDecoder) and (causal or "[MASK]" in objective.special)
    check(fits, f"the tuned lens is of causal and masked Transformers, not of a model of {type(objective).__name__}")
    return Network(objective.model, causal)


def measure(
    objective: Objective, params: Params, tokenizer: Tokenizer, ids: np.ndarray, translators: Translators | None = None
) -> np.ndarray:
    """Return KL(last layer || lens) of every level, (L,), in nats a token; without translators that of the logit lens."""
    network = network_of(objective)
    text = text_rows(objective, network, tokenizer, ids)
    own = translators or identity(network)
    total, count = np.zeros(network.last.depth), len(text.rows_RT)
    for low in range(0, count, ROWS):
        part = text.rows_RT[low : low + ROWS], text.positions_RP[low : low + ROWS]
        total += len(part[0]) * np.asarray(divergences(network, params, *part, (own.weights_LDD, own.biases_LD)))
    return total / count


# -- files -------------------------------------------------------------------------------------------------------------


def digest(params: Params) -> str:
    """Hash the parameters: translators serve those that they were trained for, and no others."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        total.update(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).data)
    return total.hexdigest()


def save(translators: Translators, path: Path, params: Params) -> None:
    """Write translators as safetensors, with the digest of the parameters that they belong to."""
    tensors = {"weights": np.asarray(translators.weights_LDD), "biases": np.asarray(translators.biases_LD)}
    save_file(tensors, path, metadata={"parameters": digest(params)})


def load(path: Path, params: Params) -> Translators:
    """Read translators; raises UserError for a damaged file, or where they belong to other parameters."""
    try:
        with safe_open(path, "np") as file:
            owner = (file.metadata() or {}).get("parameters")
            tensors = [file.get_tensor(name) for name in ("weights", "biases")]
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no translators of a tuned lens ({error})") from None
    check(owner == digest(params), f"{path} is of other parameters: delete it, or name another --tuned_lens")
    return Translators(*map(jnp.asarray, tensors))


def read_ids(config: Config, tokenizer: Tokenizer, file: str | None) -> np.ndarray:
    """Return ids of running text: of a file, or of the training split of a run's own data."""
    if file is not None:
        texts, ids = (text for _, text in Files(file).texts()), np.zeros(0, np.int32)
        for text in texts:
            ids = np.concatenate([ids, tokenizer.encode(text[: 8 * TOKENS])])
            if len(ids) >= TOKENS:
                break
        return ids[:TOKENS]
    side = prepare(config.data).train[0][1]
    return np.asarray(side.tokens[:TOKENS], np.int32)
