"""Answer spans: from characters to tokens, the candidates of a window, and the best answer over all windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lm.data.rows.templates import Laid


class Window(NamedTuple):
    """A question with a part of its paragraph.

    `spans`: characters of the paragraph, int32 [n, 2], of the tokens of `laid` from position `begin` on; `owned`, bool [n],
    the tokens with most context in this window. `none`: the position of "no answer here".
    """

    laid: Laid
    begin: int
    spans: np.ndarray
    owned: np.ndarray
    none: int


def token_span(spans: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """Return first and last token of characters [start, end); None where no token touches them."""
    touched = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start) & (spans[:, 0] < spans[:, 1]))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


@dataclass(frozen=True)
class Choice:
    """Decoding of spans: candidates per window, the longest answer in tokens, and the margin by which "" must win."""

    candidates: int
    longest: int
    threshold: float = 0.0


class Candidate(NamedTuple):
    score: float
    start: int  # characters of the paragraph
    end: int


def candidates(window: Window, start_T: np.ndarray, end_T: np.ndarray, choice: Choice) -> tuple[float, list[Candidate]]:
    """Return the score of no answer and the best spans of a window, from the start and end scores [T] of its row.

    Combines the best `candidates` starts and ends of the window; starts only where it has most context (Devlin et al. 2019).
    """
    here = slice(window.begin, window.begin + len(window.spans))
    starts, ends = start_T[here], end_T[here]
    # A token without characters of its own bounds no answer.
    empty = window.spans[:, 0] >= window.spans[:, 1]
    top_starts, top_ends = (np.argsort(-x, kind="stable")[: choice.candidates] for x in (starts, ends))
    spans = []
    for i in top_starts[window.owned[top_starts] & ~empty[top_starts]].tolist():
        for j in top_ends[~empty[top_ends]].tolist():
            if i <= j < i + choice.longest:
                low, high = int(window.spans[i, 0]), int(window.spans[j, 1])
                spans.append(Candidate(float(starts[i] + ends[j]), low, high))
    none = float(start_T[window.none] + end_T[window.none])
    return none, sorted(spans, reverse=True)[: choice.candidates]


def answer(context: str, parts: Sequence[tuple[float, Sequence[Candidate]]], choice: Choice, null: bool) -> dict[str, Any]:
    """Choose among the candidates of all windows of a question; return text, odds and the best few.

    With `null` the answer is "" where the score of no answer, the least over the windows, exceeds the best span's by more
    than `threshold`. `odds` is that difference.
    """
    best: dict[str, Candidate] = {}
    for span in sorted((span for _, spans in parts for span in spans), reverse=True):
        # Windows overlap and texts recur: of equal answers the best score counts.
        best.setdefault(context[span.start : span.end], span)
    ranked = list(best.items())[: choice.candidates]
    none = min((score for score, _ in parts), default=0.0)
    odds = none - (ranked[0][1].score if ranked else -np.inf)
    text = ranked[0][0] if ranked else ""
    if null and odds > choice.threshold:
        text = ""
    listed = [{"text": name, "score": span.score, "start": span.start} for name, span in ranked]
    return {"text": text, "odds": float(odds), "candidates": listed}
