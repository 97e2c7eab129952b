"""Speculative sampling: a small draft model proposes, the target verifies several tokens in one pass.

Leviathan et al. 2023 and Chen et al. 2023: the texts are distributed as the target's own samples.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.decode.loop import read_prompts
from lm.decode.prefill import bucket
from lm.decode.processors import LOWEST, History, Rules
from lm.decode.sampling import Sampling, argmax, log_probability, noise
from lm.decode.steps import Prepared, Prompts, Steps
from lm.errors import check


class Progress(struct.PyTreeNode):
    """State of one text. Both decoding states lack its last token; the draft's lacks the one before as well.

    So after any number of accepted tokens both forget the same number. `before`, `last`: those two tokens.
    """

    state: Any
    draft: Any
    before: jax.Array
    last: jax.Array
    history: History
    logprobs_T: jax.Array
    length: jax.Array
    done: jax.Array
    rounds: jax.Array
    accepted: jax.Array


def speculative(
    steps: Steps, prepared: Prepared, draft_steps: Steps, draft_prepared: Prepared, prompts: Prompts, *, sampling: Sampling,
    gamma: int, new: int, stops: tuple[int, ...], keys_B: jax.Array, rules: Rules | None = None,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:  # fmt: skip
    """Continue prompts by up to `new` tokens, `gamma` proposals a round.

    Returns each prompt's (new ids, their log-probabilities under the target itself), and the share of accepted proposals.
    Greedy, the ids are the target's greedy ones; else samples of its processed distribution (`rules`, then `sampling`),
    drawn with the row's key alone. Prompts go one by one, as each forgets another number of tokens. Lay `prepared` out for
    gamma + 1 rows, since that many tokens go through it together, `draft_prepared` for 1.
    """
    check(gamma >= 1, f"gamma={gamma}: the draft model must propose at least 1 token")
    for model in (steps, draft_steps):
        check(model.rewinds, f"{type(model).__name__} cannot forget rejected tokens: no speculative decoding")
    how = {"steps": steps, "draft_steps": draft_steps, "sampling": sampling, "gamma": gamma, "stops": tuple(stops)}
    how |= {"rules": rules or Rules(stops=tuple(stops)), "room": bucket(new)}
    rows, accepted, proposed = [], 0, 0
    for i in range(len(prompts.tokens_BT)):
        prompt = jax.tree.map(lambda x, i=i: x[i : i + 1], prompts)
        ids, logprobs, length, kept, rounds = jax.device_get(
            continue_one(prepared, draft_prepared, prompt, keys_B[i], new, **how)
        )
        rows.append((ids[:length], logprobs[:length]))
        accepted, proposed = accepted + int(kept), proposed + int(rounds) * gamma
    return rows, accepted / max(1, proposed)


@partial(jax.jit, static_argnames=("steps", "draft_steps", "sampling", "rules", "gamma", "stops", "room"))
def continue_one(
    prepared: Prepared, draft_prepared: Prepared, prompt: Prompts, key: jax.Array, new: int, *, steps: Steps,
    draft_steps: Steps, sampling: Sampling, rules: Rules, gamma: int, stops: tuple[int, ...], room: int,
) -> tuple[jax.Array, ...]:  # fmt: skip
    """Continue one prompt in one compiled loop; return ids, log-probabilities, length, accepted proposals and rounds."""
    room += gamma + 1  # the last round may pass the end
    _, logits_BV, state, history = read_prompts(steps, prepared, prompt, room)
    _, draft = draft_steps.prefill(draft_prepared, prompt, room)

    # The first token is the target's own: from then on both states lack the same tokens.
    first_B = sampling.choose(rules.process(logits_BV, history), jax.random.fold_in(key, 0)[None])
    progress = Progress(
        state=state,
        draft=draft_steps.rewind(draft, 1),
        before=prompt.tokens_BT[0, -1],
        last=first_B[0],
        history=history.add(first_B),
        logprobs_T=jnp.zeros(room).at[0].set(log_probability(logits_BV, first_B)[0]),
        length=jnp.ones((), jnp.int32),
        done=jnp.isin(first_B[0], jnp.asarray(stops, jnp.int32)),
        rounds=jnp.zeros((), jnp.int32),
        accepted=jnp.zeros((), jnp.int32),
    )

    def one_round(s: Progress) -> Progress:
        # The draft writes G tokens one by one; the target reads them, and the last token before them, at once.
        now = jax.random.fold_in(key, s.rounds + 1)
        like = partial(propose, draft_prepared, s, now, steps=draft_steps, sampling=sampling, rules=rules, gamma=gamma)
        ids_G, q_GV, history, draft = like(vocab=logits_BV.shape[-1])
        h_BTD, state = steps.step(prepared, s.state, jnp.concatenate([s.last[None], ids_G])[None])
        raw_TV = steps.logits(prepared, h_BTD[0])
        p_TV = verified(raw_TV, history, s.history.count, sampling, rules)

        # Both forget the proposals behind the first rejected one.
        count, extra = judge(p_TV, q_GV, ids_G, jax.random.fold_in(now, gamma), sampling.strategy == "greedy")
        return settle(s, ids_G, count, extra, raw_TV, history, stops).replace(
            state=steps.rewind(state, gamma - count), draft=draft_steps.rewind(draft, gamma - count)
        )

    s = jax.lax.while_loop(lambda s: ~s.done & (s.length < new), one_round, progress)
    ids_T = s.history.tokens_BT[0, s.history.prompt :]
    return ids_T, s.logprobs_T, jnp.minimum(s.length, new), s.accepted, s.rounds


def propose(
    prepared: Prepared, s: Progress, key: jax.Array, *, steps: Steps, sampling: Sampling, rules: Rules, gamma: int,
    vocab: int,
) -> tuple[jax.Array, jax.Array, History, Any]:  # fmt: skip
    """Let the draft model write G tokens; return them, the scores (G, V) that chose each, the history and the state."""

    def choose(h_BD: jax.Array, history: History, i: jax.Array | int) -> tuple[jax.Array, jax.Array, History]:
        scores_BV = sampling.process(rules.process(fit(steps.logits(prepared, h_BD), vocab), history))
        gumbel_V = 0.0 if sampling.strategy == "greedy" else noise(jax.random.fold_in(key, i), vocab)
        drawn_B = argmax(scores_BV + gumbel_V)
        return drawn_B, scores_BV[0], history.add(drawn_B)

    def more(carry: tuple[jax.Array, History, Any], i: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        ids_B, history, draft = carry
        h_BTD, draft = steps.step(prepared, draft, ids_B[:, None])
        ids_B, scores_V, history = choose(h_BTD[:, -1], history, i)
        return (ids_B, history, draft), (ids_B[0], scores_V)

    # The draft's state lacks two tokens: the first pass reads both.
    h_BTD, draft = steps.step(prepared, s.draft, jnp.stack([s.before, s.last])[None])
    ids_B, scores_V, history = choose(h_BTD[:, -1], s.history, 0)
    (_, history, draft), (ids_G, scores_GV) = jax.lax.scan(more, (ids_B, history, draft), jnp.arange(1, gamma))
    return jnp.concatenate([ids_B, ids_G]), jnp.concatenate([scores_V[None], scores_GV]), history, draft


def fit(logits_BV: jax.Array, vocab: int) -> jax.Array:
    """Cut or pad a draft's logits to the target's size: tables may be padded differently, and any proposal is valid."""
    logits_BV = logits_BV[:, :vocab]
    return jnp.pad(logits_BV, ((0, 0), (0, vocab - logits_BV.shape[1])), constant_values=LOWEST)


def verified(raw_TV: jax.Array, history: History, count: jax.Array, sampling: Sampling, rules: Rules) -> jax.Array:
    """Process the target's logits, each with the history before its own position: `count` new tokens and more."""
    columns = jnp.arange(history.tokens_BT.shape[1]) - history.prompt

    def process(raw_V: jax.Array, count: jax.Array) -> jax.Array:
        seen = history.replace(count=count, real_BT=history.real_BT & (columns < count))
        return sampling.process(rules.process(raw_V[None], seen))[0]

    return jax.vmap(process)(raw_TV, count + jnp.arange(len(raw_TV)))


def judge(p_TV: jax.Array, q_GV: jax.Array, ids_G: jax.Array, key: jax.Array, greedy: bool) -> tuple[jax.Array, jax.Array]:
    """Accept proposals up to the first rejection; return their number and the token after them.

    Proposal x is accepted with probability min(1, p(x) / q(x)). Behind a rejection the next token comes from
    max(p - q, 0), normalised; behind G accepted proposals, from the target's own distribution.
    """
    gamma = len(ids_G)
    if greedy:
        best_T = argmax(p_TV)
        # The product is 0 from the first mismatch on.
        count = jnp.cumprod(best_T[:gamma] == ids_G).sum()
        return count, best_T[count]
    log_p_TV, log_q_GV = jax.nn.log_softmax(p_TV), jax.nn.log_softmax(q_GV)
    ratio_G = jnp.take_along_axis(log_p_TV[:gamma] - log_q_GV, ids_G[:, None], 1)[:, 0]
    chance, after = jax.random.split(key)
    # In logarithms, as p / q may overflow; p = q is always accepted, since u < 1.
    accepted_G = jnp.log(jax.random.uniform(chance, (gamma,))) < ratio_G
    count = jnp.cumprod(accepted_G).sum()
    p_V = jnp.exp(log_p_TV[count])
    # Behind the last proposal nothing was proposed: with q = 0 the residual is the target's own distribution.
    q_V = jnp.where(count < gamma, jnp.exp(log_q_GV[jnp.minimum(count, gamma - 1)]), 0)
    residual_V = jnp.maximum(p_V - q_V, 0)
    residual_V = jnp.where(residual_V.sum() > 0, residual_V, p_V)  # p = q but for rounding: no rejection there
    return count, jax.random.categorical(after, jnp.log(residual_V)).astype(jnp.int32)


def settle(
    s: Progress, ids_G: jax.Array, count: jax.Array, extra: jax.Array, raw_TV: jax.Array, history: History,
    stops: tuple[int, ...],
) -> Progress:  # fmt: skip
    """Append the accepted proposals and the token after them; the caller rewinds the states."""
    gamma, start = len(ids_G), s.history.count
    ids_T = jnp.append(ids_G, 0).at[count].set(extra)
    logprobs_T = jax.lax.dynamic_update_slice(s.logprobs_T, log_probability(raw_TV, ids_T), (start,))
    at = jnp.arange(gamma + 1)
    # A stop token among the refused proposals was never written.
    stopped_T = jnp.isin(ids_T, jnp.asarray(stops, jnp.int32)) & (at <= count)
    done = stopped_T.any()

    # All proposals are written; the mask hides those behind the last accepted one until others replace them.
    tokens_BT = jax.lax.dynamic_update_slice(history.tokens_BT, ids_T[None], (0, history.prompt + start))
    columns = jnp.arange(tokens_BT.shape[1]) - history.prompt
    new_BT = ((columns >= 0) & (columns < start + count + 1))[None]
    prompt_BT = history.real_BT & (columns < 0)
    return s.replace(
        before=jnp.where(count > 0, ids_T[count - 1], s.last),
        last=extra,
        history=history.replace(tokens_BT=tokens_BT, real_BT=prompt_BT | new_BT, count=start + count + 1),
        logprobs_T=logprobs_T,
        length=start + jnp.where(done, jnp.argmax(stopped_T), count) + 1,
        done=done,
        rounds=s.rounds + 1,
        accepted=s.accepted + count,
    )
