"""Two networks on one text: the log-probabilities of both, added up over spans of characters that both tokenizers end."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check
from lm.explain.attribution import CHUNK, Params
from lm.explain.explain import lay_out, loss_on_text
from lm.objectives.base import Objective


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of a text's tokens, float (T,), NaN where nothing precedes; `ends`: the character after each."""

    kind: str
    tokens: list[str]
    ends: np.ndarray
    logprobs: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Spans of a text, [start, stop) in characters, with the log-probability of each under two networks, in nats.

    `first`, `second`, `difference`: float (S,), NaN where one of them scores no token. Sums are over the other spans.
    """

    scores: tuple[TokenScores, TokenScores]
    spans: list[tuple[int, int]]
    first: np.ndarray
    second: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        return self.first - self.second

    @property
    def shared(self) -> np.ndarray:
        """Return the spans that both score."""
        return ~np.isnan(self.difference)

    @property
    def totals(self) -> tuple[float, float]:
        """Return both log-probabilities of the shared spans."""
        return float(self.first[self.shared].sum()), float(self.second[self.shared].sum())


def token_scores(
    objective: Objective, params: Params, tokenizer: Tokenizer, text: str, target: str | None = None
) -> TokenScores:
    """Score a text's tokens, of an encoder-decoder those of `target`; masked models hide each token in turn."""
    reading = lay_out(objective, params, tokenizer, text, target)
    check(target is not None or reading.kind != "encoder-decoder", "two encoder-decoders are compared on a --target: give one")
    given = [one for one in reading.predictions if one[2] >= 0]
    ids, ends = tokenizer.encode_ends([text if target is None else target])[0]
    aligned = first_match([one[2] for one in given], ids.tolist())
    check(aligned is not None, "the text has special tokens or masks: two networks are compared on plain text")

    # Rows in chunks: a masked model has one a token.
    network, sides, (rows_P, positions_P, ids_P) = loss_on_text(reading, params)
    score = jax.jit(lambda params, sides, *picks: network.log_probabilities(params, sides, picks))
    logprobs_P = np.full(len(ids_P), np.nan)
    for low in range(0, int(rows_P.max()) + 1, CHUNK):
        part = np.flatnonzero((rows_P >= low) & (rows_P < low + CHUNK))
        own = tuple(side if len(side) == 1 else side[low : low + CHUNK] for side in sides)
        logprobs_P[part] = score(params, own, rows_P[part] - low, positions_P[part], ids_P[part])
    missing = max(0, -aligned)  # tokens that nothing precedes
    logprobs_T = np.concatenate([np.full(missing, np.nan), logprobs_P[max(0, aligned) :]])[: len(ids)]
    return TokenScores(reading.kind, tokenizer.pieces(ids), ends, logprobs_T)


def first_match(targets: list[int], ids: list[int]) -> int | None:
    """Return the index in `targets` of the first of the ids; -1: the first id is not among them, all others are."""
    for start in range(len(targets) - len(ids) + 1):
        if targets[start : start + len(ids)] == ids:
            return start
    return -1 if targets[: len(ids) - 1] == ids[1:] else None


def compare(first: TokenScores, second: TokenScores) -> Comparison:
    """Align two scorings of one text on the characters where tokens of both end."""
    common = sorted({*first.ends.tolist()} & {*second.ends.tolist()})
    check(len(common) > 0, "the two tokenizers have no end of a token in common on this text")
    starts = [0, *common[:-1]]
    sums = []
    for one in (first, second):
        # The last token that ends at a character closes a span: parts of one character share their end.
        cuts = np.searchsorted(one.ends, common, side="right")
        sums.append(np.array([one.logprobs[low:high].sum() for low, high in zip([0, *cuts[:-1]], cuts)]))
    return Comparison((first, second), list(zip(starts, common)), *sums)
