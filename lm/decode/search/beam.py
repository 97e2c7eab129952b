"""Beam search: several continuations of each prompt kept side by side, the best finished ones returned.

The choices, step by step, are those of Hugging Face's generate; diverse groups follow Vijayakumar et al. 2016.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.decode.loop import read_prompts
from lm.decode.prefill import bucket, check_finite
from lm.decode.processors import History, Rules
from lm.decode.sampling import Sampling
from lm.decode.search.reorder import reorder
from lm.decode.steps import Prepared, Prompts, Seq2SeqSteps, Steps
from lm.errors import UserError, check, check_choices, check_range

NEVER = -1e9  # score of a missing text, as in Hugging Face's: finite, so that sums and comparisons stay numbers


@dataclass(frozen=True, kw_only=True)
class Beams:
    """Settings of a search; hashable, a static argument of compiled functions.

    A finished text of n new tokens, its stop among them, scores its summed log-probability divided by n^a ("hf"; also
    fairseq's) or ((5 + n) / 6)^a ("gnmt", Wu et al. 2016), a = `length_penalty`: above 0 for longer texts.
    `early_stopping`: True ends when `count` texts are finished; False when the best running beam, at its present length,
    could not beat the worst of them; "never" judges that by the longest length where a > 0.
    `groups` > 1 cuts the beams into groups that choose one after another; each token loses `diversity_penalty` for each
    time an earlier group of its prompt has just chosen it. The best `returned` texts of all groups are returned.
    `coverage_penalty` b adds b times the sum, over the source's tokens, of log min(total attention to it, 1) to the score
    of a finished text (Wu et al. 2016, equation 14; with the attention of the decoder's last layer, mean of its heads).
    """

    count: int = 4
    length_penalty: float = 1.0
    penalty: Literal["hf", "gnmt"] = "hf"
    early_stopping: bool | Literal["never"] = False
    groups: int = 1
    diversity_penalty: float = 0.0
    coverage_penalty: float = 0.0
    returned: int = 1

    def __post_init__(self):
        check_choices(self)
        check_range(self, 1, math.inf, "count", "groups", "returned")
        check(math.isfinite(self.length_penalty), f"length_penalty={self.length_penalty} must be a number")
        check(
            isinstance(self.early_stopping, bool) or self.early_stopping == "never",
            f"early_stopping={self.early_stopping!r} must be True, False or 'never'",
        )
        check(self.count % self.groups == 0, f"count={self.count} beams do not divide among groups={self.groups}")
        check(self.returned <= self.count, f"returned={self.returned} texts of count={self.count} beams: raise count")
        check(self.groups > 1 or not self.diversity_penalty, "diversity_penalty is between groups: set groups above 1")
        check_range(self, 0, math.inf, "coverage_penalty")

    @property
    def size(self) -> int:
        """Beams of a group."""
        return self.count // self.groups

    def normalise(self, totals: jax.Array, length: jax.Array | int) -> jax.Array:
        """Turn summed log-probabilities into scores of texts of that many new tokens."""
        length = jnp.asarray(length, jnp.float32)
        return totals / (length if self.penalty == "hf" else (5 + length) / 6) ** self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A finished text: its new ids, a stop token included; the score that ranked it; its summed natural log-probability
    under the model itself."""

    ids: np.ndarray
    score: float
    logprob: float


class Pool(struct.PyTreeNode):
    """The N best finished texts of each prompt P and group G in falling order; `valid`: the slot holds one."""

    scores_PGN: jax.Array
    logprobs_PGN: jax.Array
    lengths_PGN: jax.Array
    tokens_PGNT: jax.Array
    valid_PGN: jax.Array


class Search(struct.PyTreeNode):
    """State of a search; its rows R are prompts x groups x beams.

    The decoding state is one choice behind: beam r continues its row `parents_R[r]`, whose text is that of row r before
    column `since` of the history.
    """

    state: Any
    coverage_RS: jax.Array | None  # total attention to each source token, where coverage counts
    history: History
    parents_R: jax.Array
    since: jax.Array
    totals_PGN: jax.Array  # ranks the running beams
    logprobs_PGN: jax.Array  # under the model itself
    pool: Pool
    open_PG: jax.Array  # a running beam may still beat the pool


def beam_search(
    steps: Steps, prepared: Prepared, prompts: Prompts, *, beams: Beams, rules: Rules, new: int, stops: tuple[int, ...],
    sampling: Sampling | None = None, keys_P: jax.Array | None = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """Search for the best continuations of up to `new` tokens; return the `beams.returned` best of each prompt, best first.

    `prepared`: laid out for prompts x beams.count rows. `rules` act on log-probabilities and count in the scores.
    `sampling`, with a key a prompt, draws the candidates without replacement from its warped scores in place of the
    likeliest (beam sampling). A prompt's result does not depend on the others, but for float rounding.
    """
    check((sampling is None) == (keys_P is None), "beam sampling needs both a sampling and one key a prompt")
    check(sampling is None or beams.groups == 1, "beam sampling knows no groups: groups=1")
    if beams.coverage_penalty:
        if not isinstance(steps, Seq2SeqSteps):
            raise UserError("coverage_penalty counts the attention to a source: it needs an encoder-decoder")
        steps = replace(steps, attend=True)
    how = {"steps": steps, "beams": beams, "rules": rules, "stops": tuple(stops), "sampling": sampling}
    pool = jax.device_get(search(prepared, prompts, keys_P, new, room=bucket(new), **how))
    check_finite(pool.scores_PGN[np.isnan(pool.scores_PGN)], "the texts of a search")

    # Groups of a prompt compete with each other for the texts that are returned.
    results = []
    for scores, logprobs, lengths, tokens in zip(*(
        x.reshape(len(x), beams.count, *x.shape[3:])
        for x in (pool.scores_PGN, pool.logprobs_PGN, pool.lengths_PGN, pool.tokens_PGNT)
    ), strict=True):  # fmt: skip
        best = np.argsort(-scores, kind="stable")[: beams.returned]
        results.append([Hypothesis(tokens[i, : lengths[i]], float(scores[i]), float(logprobs[i])) for i in best])
    return results


@partial(jax.jit, static_argnames=("steps", "beams", "rules", "stops", "sampling", "room"))
def search(
    prepared: Prepared, prompts: Prompts, keys_P: jax.Array | None, new: int, *, steps: Steps, beams: Beams, rules: Rules,
    stops: tuple[int, ...], sampling: Sampling | None, room: int,
) -> Pool:  # fmt: skip
    """Read the prompts once, then choose and step until no prompt can improve: one compiled loop."""
    # All beams of a prompt start from the one row that was read.
    count = len(prompts.tokens_BT)
    _, logits_BV, state, history = read_prompts(steps, prepared, prompts, room)
    shape = (count, beams.groups, beams.size)
    rows_R = jnp.repeat(jnp.arange(count), beams.count)
    state = steps.select(state, rows_R)
    start = Search(
        state=state,
        coverage_RS=state.attention_BS if beams.coverage_penalty else None,
        history=history.select(rows_R),
        parents_R=jnp.arange(len(rows_R)),
        since=jnp.zeros((), jnp.int32),
        # Only one beam of each group counts at first: the others are copies.
        totals_PGN=jnp.full(shape, NEVER).at[..., 0].set(0),
        logprobs_PGN=jnp.zeros(shape),
        pool=Pool(
            scores_PGN=jnp.full(shape, NEVER),
            logprobs_PGN=jnp.zeros(shape),
            lengths_PGN=jnp.zeros(shape, jnp.int32),
            tokens_PGNT=jnp.zeros((*shape, room), jnp.int32),
            valid_PGN=jnp.zeros(shape, bool),
        ),
        open_PG=jnp.ones(shape[:2], bool),
    )
    pick = partial(choose, keys_P=keys_P, new=new, beams=beams, rules=rules, stops=stops, sampling=sampling)

    def going(s: Search) -> jax.Array:
        return (s.history.count < new) & s.open_PG.any()

    def advance(s: Search) -> Search:
        # The state catches up with the last choice only here: after the final one nobody needs it.
        state = s.state if beams.count == 1 else reorder(steps, s.state, s.parents_R, s.since)
        last_R1 = jax.lax.dynamic_slice_in_dim(s.history.tokens_BT, s.history.prompt + s.history.count - 1, 1, 1)
        h_RTD, state = steps.step(prepared, state, last_R1)
        covered = None if s.coverage_RS is None else s.coverage_RS[s.parents_R] + state.attention_BS
        return pick(s.replace(state=state, coverage_RS=covered), steps.logits(prepared, h_RTD[:, 0]))

    return jax.lax.while_loop(going, advance, pick(start, logits_BV[rows_R])).pool


def choose(
    s: Search, logits_RV: jax.Array, *, keys_P: jax.Array | None, new: int, beams: Beams, rules: Rules,
    stops: tuple[int, ...], sampling: Sampling | None,
) -> Search:  # fmt: skip
    """Add one token to every beam, group after group, and put finished texts into the pools."""
    # Enough candidates that `size` beams run on even if each beam's best ones are all stops.
    (prompts, groups, size), vocab = s.totals_PGN.shape, logits_RV.shape[-1]
    model_PGNV = jax.nn.log_softmax(logits_RV).reshape(prompts, groups, size, vocab)
    rows_PGN = jnp.arange(len(logits_RV)).reshape(prompts, groups, size)
    candidates = min(max(2, 1 + len(stops)) * size, size * vocab)
    taken_PV, chosen = jnp.zeros((prompts, vocab)), []
    bonus_PGN = jnp.zeros_like(s.totals_PGN) if s.coverage_RS is None else covering(s, beams).reshape(s.totals_PGN.shape)
    for g in range(groups):
        # Scores of this group: earlier groups' tokens cost it, the rules see its own texts.
        model_PNV, rows_PN, totals_PN, logprobs_PN = (x[:, g] for x in (model_PGNV, rows_PGN, s.totals_PGN, s.logprobs_PGN))
        scores_PNV = model_PNV - beams.diversity_penalty * taken_PV[:, None] if g else model_PNV
        history = s.history if groups == 1 else s.history.select(rows_PN.ravel())
        scores_RV = rules.process(scores_PNV.reshape(-1, vocab), history)
        scores_RV = scores_RV if sampling is None else sampling.process(scores_RV)
        totals_PC = (scores_RV.reshape(prompts, size, vocab) + totals_PN[..., None]).reshape(prompts, -1)
        # The best continuations over all beams of the group: C of size x V.
        if sampling is None:
            totals_PC, at_PC = jax.lax.top_k(totals_PC, candidates)
        else:
            totals_PC, at_PC = drawn(totals_PC, keys_P, s.history.count, candidates)
        # Finished prompts choose no more, so they cost later groups nothing.
        pool, open_P = jax.tree.map(lambda x, g=g: x[:, g], (s.pool, s.open_PG))
        how = s.history, pool, logprobs_PN, model_PNV, rows_PN, open_P
        chosen.append(extend(*how, totals_PC, at_PC, new, beams, stops, bonus_PGN[:, g]))
        _, ids_PN, *_, open_P = chosen[-1]
        taken_PV = taken_PV.at[jnp.arange(prompts)[:, None], ids_PN].add(open_P[:, None].astype(jnp.float32))
    parents_PGN, ids_PGN, totals_PGN, logprobs_PGN, pool, open_PG = jax.tree.map(lambda *x: jnp.stack(x, 1), *chosen)

    # First column at which any open beam's text changed: the cache before it stays where it is.
    history = s.history.select(parents_PGN.ravel())
    moved_RT = (history.tokens_BT != s.history.tokens_BT) & jnp.repeat(open_PG.any(1), groups * size)[:, None]
    return s.replace(
        history=history.add(ids_PGN.ravel()),
        parents_R=parents_PGN.ravel(),
        since=jnp.where(moved_RT.any(), jnp.argmax(moved_RT.any(0)), moved_RT.shape[1]),
        totals_PGN=totals_PGN,
        logprobs_PGN=logprobs_PGN,
        pool=pool,
        open_PG=open_PG,
    )


def covering(s: Search, beams: Beams) -> jax.Array:
    """Return the coverage term of the score of a text that ends now, (R,), at most 0."""
    log_RS = jnp.log(jnp.clip(s.coverage_RS, 1e-30, 1.0))
    return beams.coverage_penalty * jnp.where(s.state.source_segments_BS > 0, log_RS, 0).sum(1)


def extend(
    history: History, pool: Pool, logprobs_PN: jax.Array, model_PNV: jax.Array, rows_PN: jax.Array, open_P: jax.Array,
    totals_PC: jax.Array, at_PC: jax.Array, new: int, beams: Beams, stops: tuple[int, ...], bonus_PN: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, Pool, jax.Array]:  # fmt: skip
    """Split one group's candidates C into finished texts, which get their beam's bonus, and the next beams.

    Returns the beams' old rows, tokens, totals and log-probabilities, all (P, N), the pool, and whether it may still
    improve (P,).
    """
    # Candidates are flat indices into (beam, token).
    vocab, size, length = model_PNV.shape[-1], beams.size, history.count + 1
    parent_PC, ids_PC = at_PC // vocab, (at_PC % vocab).astype(jnp.int32)

    def take(x_PX: jax.Array, i_PY: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_PX, i_PY, 1)

    logprobs_PC = take(logprobs_PN, parent_PC) + take(model_PNV.reshape(len(at_PC), -1), at_PC)

    # Candidates that did not end run on, the `size` best of them.
    ended_PC = jnp.isin(ids_PC, jnp.asarray(stops, jnp.int32)) | (length == new)
    running_PC = totals_PC + ended_PC * NEVER
    _, next_PN = jax.lax.top_k(running_PC, size)
    beams_next = [take(x, next_PN) for x in (take(rows_PN, parent_PC), ids_PC, running_PC, logprobs_PC)]

    # Only a candidate among the best `size` may end; a full pool accepts no more where that ends the search.
    ended_PC &= jnp.arange(ids_PC.shape[1]) < size
    shut_P = ~open_P | (pool.valid_PGN.all(1) & (beams.early_stopping is True))
    scores_PC = beams.normalise(totals_PC, length) + take(bonus_PN, parent_PC) + NEVER * (1.0 * shut_P[:, None] + ~ended_PC)
    tokens_PCT = history.tokens_BT[take(rows_PN, parent_PC), history.prompt :]
    tokens_PCT = jax.lax.dynamic_update_index_in_dim(tokens_PCT, ids_PC, history.count, 2)
    offered = Pool(scores_PC, logprobs_PC, jnp.full_like(ids_PC, length), tokens_PCT, ended_PC & ~shut_P[:, None])

    # The best of the pool and the newcomers.
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), pool, offered)
    _, best_PN = jax.lax.top_k(both.scores_PGN, size)
    pool = jax.tree.map(lambda x: jax.vmap(lambda texts, i: texts[i])(x, best_PN), both)

    # Scores of running beams only fall, so the best one at its present (or longest) length bounds its future.
    reach = new if beams.early_stopping == "never" and beams.length_penalty > 0 else length
    hope_P = beams.normalise(beams_next[2][:, 0], reach)
    worst_PN = jnp.where(pool.valid_PGN, pool.scores_PGN.min(1, keepdims=True), NEVER)
    open_P &= (hope_P[:, None] > worst_PN).any(1)
    if beams.early_stopping is True:
        open_P &= ~pool.valid_PGN.all(1)
    rows_next, ids_next, totals_next, logprobs_next = beams_next
    return rows_next, ids_next, totals_next, logprobs_next, pool, open_P


def drawn(totals_PC: jax.Array, keys_P: jax.Array, step: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Draw candidates without replacement from the softmax of the totals (Gumbel top-k); in falling order of totals."""
    noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), totals_PC.shape[1:]))(keys_P)
    _, at_PC = jax.lax.top_k(totals_PC + noise, count)
    # Sorted again, as noise chose them: `extend` lets only the first `size` by total end a text.
    best_PC, order_PC = jax.lax.top_k(jnp.take_along_axis(totals_PC, at_PC, 1), count)
    return best_PC, jnp.take_along_axis(at_PC, order_PC, 1)
