"""Spans of a paragraph: answers found in tokens, candidates of windows, the answer of all windows; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lm.data.rows.templates import Laid


class Window(NamedTuple):
    """A question with a part of its paragraph.

    `spans`: characters of the paragraph, int32 [n, 2], that the tokens from place `begin` of `laid` on stand for;
    `owned`, bool [n], where this window has most context. `none`: the place that says "no answer here".
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
    """How an answer is chosen: so many candidates a window, answers of so many tokens, and what "" must win by."""

    candidates: int
    longest: int
    threshold: float = 0.0


class Candidate(NamedTuple):
    score: float
    start: int  # characters of the paragraph
    end: int


def candidates(window: Window, start_T: np.ndarray, end_T: np.ndarray, choice: Choice) -> tuple[float, list[Candidate]]:
    """Return the score of no answer, and the best spans of a window, scores (T,) of whose tokens begin at its first.

    Starts and ends are each window's best `candidates`, the start where the window has most context (Devlin et al. 2019).
    """
    here = slice(window.begin, window.begin + len(window.spans))
    starts, ends = start_T[here], end_T[here]
    empty = window.spans[:, 0] >= window.spans[:, 1]
    top_starts, top_ends = (np.argsort(-x, kind="stable")[: choice.candidates] for x in (starts, ends))
    found = []
    for i in top_starts[window.owned[top_starts] & ~empty[top_starts]].tolist():
        for j in top_ends[~empty[top_ends]].tolist():
            if i <= j < i + choice.longest:
                low, high = int(window.spans[i, 0]), int(window.spans[j, 1])
                found.append(Candidate(float(starts[i] + ends[j]), low, high))
    none = float(start_T[window.none] + end_T[window.none])
    return none, sorted(found, reverse=True)[: choice.candidates]


def answer(
    context: str, parts: Sequence[tuple[float, Sequence[Candidate]]], choice: Choice, null: bool
) -> dict[str, Any]:
    """Choose among the candidates of all windows of a question: the text, its score, and the best few.

    With `null` the answer is "" where the score of no answer, the least over the windows, is above the best span's by
    more than `threshold`. `odds` is that difference.
    """
    best: dict[str, Candidate] = {}
    for one in sorted((one for _, found in parts for one in found), reverse=True):
        best.setdefault(context[one.start : one.end], one)
    ranked = list(best.items())[: choice.candidates]
    none = min((score for score, _ in parts), default=0.0)
    odds = none - (ranked[0][1].score if ranked else -np.inf)
    text = ranked[0][0] if ranked else ""
    if null and odds > choice.threshold:
        text = ""
    listed = [{"text": name, "score": one.score, "start": one.start} for name, one in ranked]
    return {"text": text, "odds": float(odds), "candidates": listed}
