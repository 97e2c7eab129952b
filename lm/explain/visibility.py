"""The tokens that a prediction depends on, measured: the attention masks of a whole network as its losses show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import check
from lm.objectives.base import Example, Objective
from lm.sharding import unbox

INPUTS = ("source", "tokens")
EXCHANGES = 3  # ids tried in place of each token: one alone may change a loss by less than its rounding


@dataclass(frozen=True)
class Visibility:
    """Dependence of the predictions at the T positions of a row on its input tokens.

    `seen`: booleans (T, S) by the name of the input: "tokens", of an encoder-decoder also "source", and of earlier batches the
    same names behind "memory/". `weights_T`: weight of each position's prediction in the loss.
    """

    seen: dict[str, np.ndarray]
    weights_T: np.ndarray


def visibility(objective: Objective, batches: Sequence[Example], row: int = 0, seed: int = 0) -> Visibility:
    """Measure the dependence of a row's predictions on its input tokens, for a resolved objective.

    Each token is exchanged for others, and the objective computes the loss at every position again, with parameters drawn at
    random: a position depends on the tokens that change its loss. Masked keys have weights of exactly 0 and change nothing.
    Predictions at positions are measured whether they carry loss or not. `batches`: consecutive ones where the objective has a
    memory; predictions are those of the last. Raises UserError for an objective whose loss has no weight for each token.
    """
    rows = [{name: np.asarray(x)[row : row + 1] for name, x in batch.items()} for batch in batches]
    kind, last = type(objective).__name__, rows[-1]
    check({"tokens", "weights"} <= last.keys(), f"a batch of {kind} has no weights of tokens to measure")
    length = last["tokens"].shape[1]
    weights_T = np.zeros(length, np.float32)
    np.add.at(weights_T, last["places"][0] if "places" in last else np.arange(length), last["weights"][0])
    if "places" in last:  # at every position, also of a row whose batch names only those that are predicted
        everywhere = np.arange(length, dtype=np.int32)[None]
        last |= {"places": everywhere, "targets": last["tokens"]}

    params = unbox(jax.jit(objective.init)(jax.random.key(seed), last))
    # The weights of no position, then of one position each.
    weights_PBT = jnp.eye(length + 1, length, -1)[:, None]

    def losses(rows: Sequence[Mapping[str, Any]]) -> list[jax.Array]:
        """Return each term of the loss at each position, (T,); terms without token weights are constants, 0 here."""
        memory = objective.initial_memory(1)
        for earlier in rows[:-1]:
            _, memory = objective.loss(params, earlier, memory, None)

        def terms(weights_BT: jax.Array) -> list[jax.Array]:
            sums, _ = objective.loss(params, {**rows[-1], "weights": weights_BT}, memory, None)
            return [sums[name][0] for name in objective.scales]

        # The states do not depend on the weights: vmap computes the network once.
        return [term_P[1:] - term_P[0] for term_P in jax.vmap(terms)(weights_PBT)]

    seen = {}
    for i, batch in enumerate(rows):
        for name in [name for name in INPUTS if name in batch]:
            # One program for the text and all exchanges (`map`, not `vmap`): equal inputs then have equal bits.
            run = jax.jit(lambda texts, i=i, name=name: jax.lax.map(
                lambda ids_BT: losses([{**b, name: ids_BT} if k == i else b for k, b in enumerate(rows)]), texts
            ))  # fmt: skip
            changed = [np.asarray(term)[1:] != np.asarray(term)[0] for term in run(exchanged(batch[name]))]
            any_ST = np.any(changed, 0).reshape(EXCHANGES, -1, length).any(0)
            seen[name if batch is last else f"memory/{name}"] = any_ST.T
    return Visibility(seen, weights_T)


def exchanged(ids_BT: np.ndarray) -> np.ndarray:
    """Return a row (1, T), and after it the rows with one token exchanged for another of the row: (1 + EXCHANGES * T, 1, T)."""
    length, known = ids_BT.shape[1], np.unique(ids_BT)
    check(len(known) > 1, "a row of one repeated token has nothing to exchange")
    texts = [ids_BT]
    for k in range(1, EXCHANGES + 1):
        other_T = known[(np.searchsorted(known, ids_BT[0]) + k) % len(known)]
        texts += [np.where(np.arange(length) == s, other_T[s], ids_BT) for s in range(length)]
    return np.stack(texts)
