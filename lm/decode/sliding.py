"""Beyond the context: when it is full, the text goes on from its last half, read anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.steps import Steps
from lm.decode.writer import Request, Row, Watch, Writer, continue_tokens


def passes(steps: Steps, prompt: Prompt, new: int) -> bool:
    """Return whether a prompt and its new tokens are more than the context holds."""
    return steps.limit is not None and len(prompt.tokens) + new > steps.limit


def continue_beyond(
    writer: Writer, request: Request, batch: Sequence[Prompt], keys_B: jax.Array, *, sampling: Sampling,
    finished: Callable[[np.ndarray], bool] | None = None, watch: Watch | None = None,
) -> list[Row]:  # fmt: skip
    """Continue prompts of one length, `request.samples` times each, in stretches that fill the context.

    Otherwise as `continue_tokens`. Rules that look back see the tokens in the context alone. Of one length: the stretches of a
    text would else depend on the texts beside it.
    """
    limit = writer.steps.limit
    assert limit is not None
    texts = [prompt.tokens for prompt in batch for _ in range(request.samples)]
    rows: list[Row] = [(np.zeros(0, np.int32), np.zeros(0, np.float32)) for _ in texts]
    done, written, stretch = [False] * len(texts), 0, 0
    while written < request.new and not all(done):
        # All of the text while a quarter of the context is free for new tokens, else half: a stretch costs a prefill.
        keep = min(len(texts[0]), limit - 1)
        keep = keep if limit - keep >= min(limit // 4, request.new - written) else limit // 2
        count = min(limit - keep, request.new - written)

        def show(more: list[Row], so_far: list[Row] = rows) -> None:
            if watch:
                watch([joined(*pair) for pair in zip(so_far, more)])

        # A stretch counts its tokens from 0: with the same keys it would repeat the draws of the first.
        more = continue_tokens(
            writer.steps,
            writer.prepared(len(texts)),
            [Prompt(text[-keep:]) for text in texts],
            keys_B if not stretch else jax.vmap(lambda key, n=stretch: jax.random.fold_in(key, n))(keys_B),
            sampling=sampling,
            new=count,
            rules=later(request.rules, written, len(texts[0]) - keep),
            stops=writer.stops,
            finished=finished,
            watch=show if watch else None,
        )
        rows = [row if over else joined(row, part) for row, part, over in zip(rows, more, done)]
        # A row that ended early is filled up: it runs along, and its tokens no longer count.
        texts = [np.concatenate([text, ids, np.zeros(count - len(ids), np.int32)]) for text, (ids, _) in zip(texts, more)]
        written, stretch = written + count, stretch + 1
        ended = [len(ids) < written or ids[-1] in writer.stops or bool(finished and finished(ids)) for ids, _ in rows]
        done = [a or b for a, b in zip(done, ended)]
    return rows


def joined(first: Row, second: Row) -> Row:
    """Put the tokens of two stretches together."""
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def later(rules: Rules, written: int, unseen: int) -> Rules:
    """Return the rules of a text with so many new tokens; `unseen`: tokens of it, the prompt's too, before the context."""
    if not written:
        return rules
    return replace(
        rules,
        min_length=max(0, rules.min_length - max(0, unseen)),
        min_new_tokens=max(0, rules.min_new_tokens - written),
        length_penalty_start=max(0, rules.length_penalty_start - written),
        limit=max(0, rules.limit - written),
        forced_begin=None,
        forced_prefix=(),
        begin_suppress=(),
    )
