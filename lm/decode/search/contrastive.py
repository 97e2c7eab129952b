"""Contrastive search: likely tokens whose state is unlike all before it (Su et al. 2022)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.decode.loop import read_prompts
from lm.decode.prefill import bucket
from lm.decode.processors import History, Rules
from lm.decode.sampling import argmax, log_probability
from lm.decode.search.reorder import reorder
from lm.decode.steps import Prepared, Prompts, Steps
from lm.errors import check


class Progress(struct.PyTreeNode):
    """State of a search. `state` holds each prompt `top_k` times; `known_PTD`: unit hidden states of all tokens so far."""

    state: Any
    logits_PV: jax.Array
    known_PTD: jax.Array
    history: History
    logprobs_PT: jax.Array
    length_P: jax.Array
    done_P: jax.Array


def contrastive_search(
    steps: Steps, prepared: Prepared, prompts: Prompts, *, top_k: int, alpha: float, rules: Rules, new: int,
    stops: tuple[int, ...],
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Continue prompts by up to `new` tokens; return each prompt's (new ids, their log-probabilities under the model).

    Each token v maximises (1 - alpha) p(v) - alpha max_j cos(h_v, h_j) among the `top_k` likeliest: h are the last hidden
    states, j all tokens before it, the prompt's too. `prepared`: laid out for prompts x top_k rows. Raises UserError for an
    architecture whose prefill does not return the states of the whole prompt.
    """
    check(top_k >= 1, f"top_k={top_k}: contrastive search needs at least 1 candidate")
    check(0 <= alpha <= 1, f"alpha={alpha} must be from 0 (greedy) to 1")
    check(steps.complete, f"{type(steps).__name__} returns no states of the prompt, which contrastive search compares with")
    how = {"steps": steps, "top_k": top_k, "rules": rules, "stops": tuple(stops)}
    end = jax.device_get(search(prepared, prompts, alpha, new, room=bucket(new), **how))
    tokens = end.history.tokens_BT[:, end.history.prompt :]
    return [(row[:n], logprobs[:n]) for row, logprobs, n in zip(tokens, end.logprobs_PT, end.length_P, strict=True)]


def unit(h: jax.Array) -> jax.Array:
    """Scale states to length 1, in float32."""
    h = h.astype(jnp.float32)
    return h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames=("steps", "top_k", "rules", "stops", "room"))
def search(
    prepared: Prepared, prompts: Prompts, alpha: float, new: int, *, steps: Steps, top_k: int, rules: Rules,
    stops: tuple[int, ...], room: int,
) -> Progress:  # fmt: skip
    """Read the prompts once, then choose until every text has ended: one compiled loop."""
    count = len(prompts.tokens_BT)
    h_PTD, logits_PV, state, history = read_prompts(steps, prepared, prompts, room)
    top_k = min(top_k, logits_PV.shape[-1])
    progress = Progress(
        state=steps.select(state, jnp.repeat(jnp.arange(count), top_k)),
        logits_PV=logits_PV,
        known_PTD=jnp.pad(unit(h_PTD), ((0, 0), (0, room), (0, 0))),
        history=history,
        logprobs_PT=jnp.zeros((count, room), jnp.float32),
        length_P=jnp.zeros(count, jnp.int32),
        done_P=jnp.zeros(count, bool),
    )

    def going(s: Progress) -> jax.Array:
        return (s.history.count < new) & ~s.done_P.all()

    def advance(s: Progress) -> Progress:
        # Every candidate is read, in a row of its own: the score needs its hidden state.
        p_PV = jax.nn.softmax(rules.process(s.logits_PV, s.history))
        p_PK, ids_PK = jax.lax.top_k(p_PV, top_k)
        h_RTD, state = steps.step(prepared, s.state, ids_PK.reshape(-1, 1))
        h_PKD = h_RTD[:, 0].reshape(count, top_k, -1)

        # Cosine with the most similar token so far.
        cosines_PKT = jnp.einsum("pkd,ptd->pkt", unit(h_PKD), s.known_PTD)
        alike_PK = jnp.where(s.history.real_BT[:, None], cosines_PKT, -1).max(-1)
        best_P = argmax((1 - alpha) * p_PK - alpha * alike_PK)

        def chosen(x_PK: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x_PK, best_P.reshape(-1, *[1] * (x_PK.ndim - 1)), 1)[:, 0]

        h_PD, ids_P = chosen(h_PKD), chosen(ids_PK)
        write, at = jax.lax.dynamic_update_index_in_dim, s.history.count
        logprobs_P = jnp.where(s.done_P, 0, log_probability(s.logits_PV, ids_P))
        # All rows of a prompt continue from the chosen candidate's row, which differs in its last token only.
        return Progress(
            state=reorder(steps, state, jnp.repeat(jnp.arange(count) * top_k + best_P, top_k), s.history.prompt + at),
            logits_PV=steps.logits(prepared, h_PD),
            known_PTD=write(s.known_PTD, unit(h_PD), s.history.prompt + at, 1),
            history=s.history.add(ids_P),
            logprobs_PT=write(s.logprobs_PT, logprobs_P, at, 1),
            length_P=jnp.where(s.done_P, s.length_P, at + 1),
            done_P=s.done_P | jnp.isin(ids_P, jnp.asarray(stops, jnp.int32)),
        )

    return jax.lax.while_loop(going, advance, progress).replace(state=None)
