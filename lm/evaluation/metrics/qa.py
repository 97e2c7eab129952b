"""Extractive question answering: exact match and F1 by SQuAD's and CMRC's rules, as fractions of 1."""

from __future__ import annotations

import functools
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.statistics import Figure, Figures, mean, same_length

Answers = Sequence[str]  # the references of one question; empty for an unanswerable one
Rule = tuple[Callable[[str, str], float], Callable[[str, str], float]]  # exact match, F1


@functools.lru_cache(maxsize=1 << 16)  # answers and references are compared several times over
def normalise(text: str) -> str:
    """Lower-case an answer; strip punctuation, articles and extra white space (Rajpurkar et al. 2016)."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def squad_exact(prediction: str, gold: str) -> float:
    """Return 1 where both normalise to the same text."""
    return float(normalise(prediction) == normalise(gold))


def squad_f1(prediction: str, gold: str) -> float:
    """Compute F1 over bags of normalised words; with an empty side 1 only if both are empty."""
    p, g = normalise(prediction).split(), normalise(gold).split()
    if not p or not g:
        return float(p == g)
    shared = (Counter(p) & Counter(g)).total()
    return 2 * shared / (len(p) + len(g))


def is_chinese(character: str) -> bool:
    """Test for a CJK ideograph, which is a token of its own."""
    code = ord(character)
    return 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x323AF


def _is_mark(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] == "P"


def segments(text: str) -> list[str]:
    """Split into Chinese characters and words of other scripts, lower-case, without ASCII and Chinese punctuation.

    The CMRC script splits other scripts by nltk and keeps some ASCII marks; this function splits at white space.
    """
    spaced = "".join(f" {c} " if is_chinese(c) else c for c in text.lower() if not _is_mark(c))
    return spaced.split()


def cmrc_exact(prediction: str, gold: str) -> float:
    """Return 1 where both are equal up to punctuation, surrounding white space and case."""
    return float(_bare(prediction) == _bare(gold))


def _bare(text: str) -> str:
    return "".join(c for c in text.lower().strip() if not _is_mark(c))


def cmrc_f1(prediction: str, gold: str) -> float:
    """Compute F1 over the longest common run of segments (CMRC 2018, DRCD): order counts, unlike in SQuAD."""
    p, g = segments(prediction), segments(gold)
    if not p or not g:
        return float(p == g)
    return 2 * longest_run(p, g) / (len(p) + len(g))


def longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common contiguous subsequence."""
    best, above = 0, [0] * (len(second) + 1)
    for a in first:
        row = [0] * (len(second) + 1)
        for j, b in enumerate(second, 1):
            # The run that ends at both: one longer than that of their predecessors, which is all that a row must
            # remember.
            row[j] = above[j - 1] + 1 if a == b else 0
        best, above = max(best, *row), row
    return best


SQUAD: Rule = (squad_exact, squad_f1)
CMRC: Rule = (cmrc_exact, cmrc_f1)


def best(prediction: str, golds: Answers, rule: Rule = SQUAD) -> tuple[float, float]:
    """Return the best exact match and the best F1 over references; an unanswerable question has the reference ""."""
    exact, f1 = rule
    golds = [gold for gold in golds if not exact("", gold)] or [""]  # an empty reference does not make "" right
    return max(exact(prediction, gold) for gold in golds), max(f1(prediction, gold) for gold in golds)


def answers(predictions: Sequence[str], golds: Sequence[Answers], rule: Rule = SQUAD) -> Figures:
    """Compute exact and f1 of predicted texts.

    Unanswerable questions (SQuAD 2.0) add exact and f1 over those with (`/has_answer`) and without an answer (`/no_answer`).
    """
    same_length(predictions=predictions, questions=golds)
    check(not any(isinstance(g, str) for g in golds), "each question's references must be a list of texts")
    scores_N2 = np.array([best(p, g, rule) for p, g in zip(predictions, golds)])
    answered = np.array([len(g) > 0 for g in golds])
    parts = {"": np.ones(len(golds), bool)}
    if not answered.all():
        parts |= {"/has_answer": answered, "/no_answer": ~answered}
    return {
        f"{name}{part}": mean(scores_N2[chosen, k])
        for part, chosen in parts.items()
        if chosen.any()
        for k, name in enumerate(("exact", "f1"))
    }


@dataclass(frozen=True)
class Threshold:
    """A bound on the odds of "no answer" above which "" is predicted, and the metric's value at that bound."""

    bound: float
    value: float


def best_threshold(
    predictions: Sequence[str], golds: Sequence[Answers], odds_N: np.ndarray, metric: str = "f1", rule: Rule = SQUAD
) -> Threshold:
    """Find the bound on `odds_N` (score of no answer less that of the best span) with the best exact match or F1.

    `predictions` are the best spans. Equal odds fall on one side of a bound together, unlike in SQuAD 2.0's script, which
    can report a value no bound reaches. Select the bound on dev data: on the same questions the value is biased upward.
    Ties select the lowest bound; -inf leaves all questions unanswered.
    """
    same_length(predictions=predictions, questions=golds, odds=odds_N)
    check(metric in ("exact", "f1"), f"metric '{metric}' must be exact or f1")
    k, odds_N = ("exact", "f1").index(metric), np.asarray(odds_N, float)
    check(bool(np.isfinite(odds_N).all()), "odds must be finite")
    silent_N = np.array([best("", g, rule)[k] for g in golds])
    gain_N = np.array([best(p, g, rule)[k] for p, g in zip(predictions, golds)]) - silent_N
    # A bound answers the questions of lower odds: its value is a prefix sum of gains in the order of odds.
    order = np.argsort(odds_N, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(gain_N[order])])
    bounds = np.concatenate([[-np.inf], odds_N[order]])
    last = np.append(bounds[1:] != bounds[:-1], True)  # with equal odds all are in or out
    chosen = np.flatnonzero(last)[sums[last].argmax()]
    return Threshold(float(bounds[chosen]), float((silent_N.sum() + sums[chosen]) / len(odds_N)))


def with_threshold(predictions: Sequence[str], odds_N: np.ndarray, bound: float) -> list[str]:
    """Replace predictions by "" where the odds of no answer lie above the bound."""
    same_length(predictions=predictions, odds=odds_N)
    return ["" if odds > bound else text for text, odds in zip(predictions, odds_N)]


def best_thresholds(spans: Sequence[str], golds: Sequence[Answers], odds_N: np.ndarray, rule: Rule = SQUAD) -> Figures:
    """Compute best_exact, best_exact_threshold, best_f1 and best_f1_threshold over bounds; see `best_threshold`.

    Names and meaning are those of SQuAD 2.0's script, with odds in place of its probabilities. The bound that leaves all
    questions unanswered is 1 below the lowest odds.
    """
    figures = {}
    for k, metric in enumerate(("exact", "f1")):
        bound = max(best_threshold(spans, golds, odds_N, metric, rule).bound, float(np.min(odds_N)) - 1)
        texts = with_threshold(spans, odds_N, bound)
        figures[f"best_{metric}"] = mean(np.array([best(text, g, rule)[k] for text, g in zip(texts, golds)]))
        figures[f"best_{metric}_threshold"] = Figure.of(bound, math.nan)
    return figures
