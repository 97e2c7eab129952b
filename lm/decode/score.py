"""Scoring: the log-probability of every token of given continuations, for any architecture that writes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.decode.prefill import bucket, check_finite, opened_steps, pad
from lm.decode.steps import Prepared, Prompts, Steps
from lm.errors import UserError, check
from lm.objectives.base import Objective
from lm.sharding import NO_MESH

TOKENS = 8192  # of a batch, on one device
CHUNK = 2**23  # logits in memory at once


class Scored(NamedTuple):
    """Scores of each token of a continuation, [T]: its natural log-probability, whether none was likelier, the probability
    of the likeliest one, and the sum of all tokens' squared probabilities.
    """

    logprobs: np.ndarray
    greedy: np.ndarray
    confidence: np.ndarray
    squares: np.ndarray


class Pair(NamedTuple):
    """A prompt, and the continuation to score, int32 [T]."""

    prompt: Prompt
    target: np.ndarray


class Scorer:
    """Scores of one model; build it once, call it with any pairs, which run in batches sorted by length.

    A pair's scores do not depend on the others but for float rounding.
    """

    def __init__(self, objective: Objective, params: Any, tokens: int = TOKENS):
        objective, params = objective.writer(params)
        self.steps, self.tokens = opened_steps(objective), tokens
        with jax.sharding.use_abstract_mesh(NO_MESH):
            self.prepared = self.steps.prepare(params, 2)
        # One pass over all tokens, where prompt and continuation may be read alike.
        self.single = self.steps.complete and self.steps.source_limit is None and not objective.prefix

    def __call__(self, pairs: Sequence[Pair], report: Callable[[int], None] | None = None) -> list[Scored]:
        """Score every pair, in the given order; raises UserError for one too long, without target or without finite scores."""
        for pair in pairs:
            self.fits(pair)
        widths = [self.widths(pair) for pair in pairs]
        # Longest first: a batch that does not fit in memory fails before the others are scored.
        order = sorted(range(len(pairs)), key=lambda i: widths[i], reverse=True)
        results: dict[int, Scored] = {}
        while order:
            head = widths[order[0]]
            # The same number of rows for a width, so one compiled program; only the last batch is cut, to a power of two.
            rows = max(1, self.tokens // sum(head))
            count = next((n for n, i in enumerate(order) if n == rows or widths[i] != head), len(order))
            batch, order = order[:count], order[count:]
            rows = min(rows, 1 << (count - 1).bit_length())
            for i, scored in zip(batch, self.score([pairs[i] for i in batch], rows)):
                results[i] = scored
            if report:
                report(len(batch))
        return [results[i] for i in range(len(pairs))]

    def fits(self, pair: Pair) -> None:
        """Raise UserError for a pair that passes the context, or has no target."""
        length, limit = len(pair.prompt.tokens) + len(pair.target) - 1, self.steps.limit
        check(len(pair.target) > 0, "nothing to score: a continuation without tokens")
        if limit is not None and length > limit:
            raise UserError(f"{length} tokens pass the model's context of {limit}: cut the text, or shorten what precedes")
        source, most = pair.prompt.source, self.steps.source_limit
        if source is not None and most is not None and len(source) > most:
            raise UserError(f"a source of {len(source)} tokens passes the encoder's context of {most}")

    def widths(self, pair: Pair) -> tuple[int, int, int]:
        """Return the bucketed lengths of the prompt (in one pass: of all tokens), of the target and of the source."""
        target, prompt = len(pair.target), len(pair.prompt.tokens)
        source = 0 if pair.prompt.source is None else bucket(len(pair.prompt.source))
        return bucket(prompt + target - 1 if self.single else prompt), bucket(target), source

    def score(self, pairs: Sequence[Pair], rows: int) -> list[Scored]:
        """Score pairs of one width as one batch of `rows` rows."""
        prompts = [pair.prompt.tokens for pair in pairs]
        targets = [pair.target for pair in pairs]
        spare = rows - len(pairs)
        # One pass reads prompt and target as one row, whose end the target's scores stand at; two read them apart.
        if self.single:
            read = [np.concatenate([p, t[:-1]]) for p, t in zip(prompts, targets)]
            tokens_BT, segments_BT = repeat_last(pad(read, left=True), spare)
            targets_BW = repeat_last(pad(targets, left=True), spare)[0]
        else:
            tokens_BT, segments_BT = repeat_last(pad(prompts, left=True), spare)
            targets_BW = repeat_last(pad(targets, left=False), spare)[0]
        source: tuple[np.ndarray, ...] = ()
        if pairs[0].prompt.source is not None:
            source = repeat_last(pad([pair.prompt.source for pair in pairs], left=False), spare)
        batch = Prompts(tokens_BT, segments_BT, *source)  # type: ignore[arg-type]  # on the host
        with jax.sharding.use_abstract_mesh(NO_MESH):
            fields = jax.device_get(score(self.prepared, batch, targets_BW, steps=self.steps, single=self.single))
        cut = [slice(-len(t), None) if self.single else slice(len(t)) for t in targets]
        scored = [Scored(*(x[i, part] for x in fields)) for i, part in enumerate(cut)]
        for scores, target in zip(scored, targets):
            at = int(np.isfinite(scores.logprobs).argmin())
            check_finite(scores.logprobs, f"token {at + 1} of {len(target)} (id {target[at]})")
        return scored


def repeat_last(arrays: tuple[np.ndarray, np.ndarray], spare: int) -> tuple[np.ndarray, ...]:
    """Repeat the last row of each array `spare` times."""
    return tuple(np.pad(x, ((0, spare), (0, 0)), mode="edge") for x in arrays)


@partial(jax.jit, static_argnames=("steps", "single"))
def score(prepared: Prepared, prompts: Prompts, targets_BW: jax.Array, *, steps: Steps, single: bool) -> tuple[jax.Array, ...]:
    """Return the fields of `Scored` for the targets, each (B, W)."""
    width = targets_BW.shape[1]
    if single:
        h_BTD, _ = steps.prefill(prepared, prompts, 0)
        h_BWD = jnp.pad(h_BTD, ((0, 0), (max(0, width - h_BTD.shape[1]), 0), (0, 0)))[:, -width:]
    else:
        h_BTD, state = steps.prefill(prepared, prompts, width)
        more_BTD, _ = steps.step(prepared, state, targets_BW[:, :-1])
        h_BWD = jnp.concatenate([h_BTD[:, -1:], more_BTD], 1)

    # Logits are made for a part of the states at a time: all of them would take gigabytes.
    rows, size = h_BWD.shape[0] * width, h_BWD.shape[2]
    most = max(1, CHUNK // steps.config.vocab)
    parts = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= most)

    def score_part(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        h_RD, targets_R = part
        logits_RV = steps.logits(prepared, h_RD)
        own_R, best_R = jnp.take_along_axis(logits_RV, targets_R[:, None], 1)[:, 0], logits_RV.max(-1)
        # One array of exponentials serves the log-probability, the confidence and the sum of squares.
        shares_RV = jnp.exp(logits_RV - best_R[:, None])
        total_R, squares_R = shares_RV.sum(-1), (shares_RV**2).sum(-1)
        return own_R - best_R - jnp.log(total_R), own_R >= best_R, 1 / total_R, squares_R / total_R**2

    split = h_BWD.reshape(parts, -1, size), targets_BW.reshape(parts, -1)
    return tuple(x.reshape(targets_BW.shape) for x in jax.lax.map(score_part, split))
