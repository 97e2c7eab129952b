"""The ways to write from left to right, each from a batch of prompts to rows of new ids: one look-up by what is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.decode.prefill import batch_prompts
from lm.decode.sampling import Sampling
from lm.decode.search.beam import Beams, beam_search
from lm.decode.search.contrastive import contrastive_search
from lm.decode.search.speculative import speculative
from lm.decode.writer import Request, Row, Watch, Writer, continue_tokens
from lm.errors import check


@dataclass(frozen=True, kw_only=True)
class ContrastiveSearch:
    """Take, of the `top_k` likeliest tokens, a likely one that is unlike the text so far (Su et al. 2022)."""

    top_k: int = 4
    alpha: float = 0.6

    def __post_init__(self):
        check(self.top_k >= 1, f"top_k={self.top_k}: contrastive search chooses among at least 1 candidate")


@dataclass(frozen=True, kw_only=True)
class Speculative:
    """Let a draft model propose `tokens` at a time; what comes out is distributed as the large model's own draws."""

    draft: Writer
    tokens: int = 4
    sampling: Sampling = Sampling()


def rows_each(ask: Request) -> int:
    """Count the rows of a batch that one prompt takes."""
    way = ask.sampling
    return way.count if isinstance(way, Beams) else way.top_k if isinstance(way, ContrastiveSearch) else ask.samples


def write_batch(
    writer: Writer, ask: Request, batch: Sequence[Prompt], keys_B: jax.Array, watch: Watch | None
) -> list[list[Row]]:
    """Give the rows of each prompt."""
    way = ask.sampling
    if isinstance(way, Beams):
        return search(writer, ask, way, batch)
    if isinstance(way, ContrastiveSearch):
        rows = contrast(writer, ask, way, batch)
    elif isinstance(way, Speculative):
        rows = speculate(writer, ask, way, batch, keys_B)
    else:
        rows = sample(writer, ask, batch, keys_B, watch)
    return [rows[i : i + ask.samples] for i in range(0, len(rows), ask.samples)]


def sample(writer: Writer, ask: Request, batch: Sequence[Prompt], keys_B: jax.Array, watch: Watch | None) -> list[Row]:
    """Take the likeliest token, or draw one, again and again."""

    def finished(ids):
        text = writer.tokenizer.decode(ids)
        return any(stop in text for stop in ask.stop)

    return continue_tokens(
        writer.steps,
        writer.prepared(len(keys_B)),
        batch,
        keys_B,
        sampling=ask.sampling,
        new=ask.new,
        rules=ask.rules,
        stops=writer.stops,
        grammar=ask.grammar,
        finished=finished if ask.stop else None,
        watch=watch,
    )


def search(writer: Writer, ask: Request, beams: Beams, batch: Sequence[Prompt]) -> list[list[Row]]:
    """Search with beams; a row's log-probability is known as a whole only."""
    found = beam_search(
        writer.steps,
        writer.prepared(len(batch) * beams.count),
        batch_prompts(batch),
        beams=replace(beams, returned=ask.samples),
        rules=replace(ask.rules, stops=writer.stops),
        new=ask.new,
        stops=writer.stops,
    )
    return [[(one.ids, np.float64(one.logprob)) for one in each] for each in found]


def contrast(writer: Writer, ask: Request, way: ContrastiveSearch, batch: Sequence[Prompt]) -> list[Row]:
    """Search contrastively."""
    return contrastive_search(
        writer.steps,
        writer.prepared(len(batch) * way.top_k),
        batch_prompts(batch),
        top_k=way.top_k,
        alpha=way.alpha,
        rules=replace(ask.rules, stops=writer.stops),
        new=ask.new,
        stops=writer.stops,
    )


def speculate(writer: Writer, ask: Request, way: Speculative, batch: Sequence[Prompt], keys_B: jax.Array) -> list[Row]:
    """Verify what the draft proposes; each prompt is repeated for its samples."""
    batch = [prompt for prompt in batch for _ in range(ask.samples)]
    rows, writer.accepted = speculative(
        writer.steps,
        writer.prepared(way.tokens + 1),
        way.draft.steps,
        way.draft.prepared(1),
        batch_prompts(batch),
        sampling=way.sampling,
        gamma=way.tokens,
        new=ask.new,
        stops=writer.stops,
        keys_B=keys_B,
        rules=replace(ask.rules, stops=writer.stops),
    )
    return rows
