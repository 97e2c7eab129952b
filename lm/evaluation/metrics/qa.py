"""Extractive question answering: exact match and F1 as SQuAD's and CMRC's scripts give them, as fractions of 1."""

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

Answers = Sequence[str]  # the references of one question; none: it has no answer
Rule = tuple[Callable[[str, str], float], Callable[[str, str], float]]  # exact match, F1


@functools.lru_cache(maxsize=1 << 16)  # answers and references are compared several times over
def normalise(text: str) -> str:
    """Write an answer in lower case without punctuation, articles and spare white space (Rajpurkar et al. 2016)."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def squad_exact(prediction: str, gold: str) -> float:
    """1 where both normalise to the same text."""
    return float(normalise(prediction) == normalise(gold))


def squad_f1(prediction: str, gold: str) -> float:
    """F1 over the bags of normalised words; where one is empty, 1 only if both are."""
    p, g = normalise(prediction).split(), normalise(gold).split()
    if not p or not g:
        return float(p == g)
    shared = (Counter(p) & Counter(g)).total()
    return 2 * shared / (len(p) + len(g))


def is_chinese(character: str) -> bool:
    """Whether a character is a CJK ideograph, which counts as a token of its own."""
    code = ord(character)
    return 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x323AF


def _is_mark(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] == "P"


def segments(text: str) -> list[str]:
    """Cut into Chinese characters and whole words of other scripts, lower-case, ASCII and Chinese punctuation left out.

    The CMRC script lets nltk part what is not Chinese and keeps some ASCII marks; here white space parts it.
    """
    spaced = "".join(f" {c} " if is_chinese(c) else c for c in text.lower() if not _is_mark(c))
    return spaced.split()


def cmrc_exact(prediction: str, gold: str) -> float:
    """1 where both are equal without punctuation, white space at the ends and case."""
    return float(_bare(prediction) == _bare(gold))


def _bare(text: str) -> str:
    return "".join(c for c in text.lower().strip() if not _is_mark(c))


def cmrc_f1(prediction: str, gold: str) -> float:
    """F1 over the longest run of segments that both have (CMRC 2018, DRCD): order counts, unlike in SQuAD."""
    p, g = segments(prediction), segments(gold)
    if not p or not g:
        return float(p == g)
    return 2 * longest_run(p, g) / (len(p) + len(g))


def longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest contiguous sequence in both."""
    best, above = 0, [0] * (len(second) + 1)
    for a in first:
        row = [0] * (len(second) + 1)
        for j, b in enumerate(second, 1):
            row[j] = above[j - 1] + 1 if a == b else 0
        best, above = max(best, *row), row
    return best


SQUAD: Rule = (squad_exact, squad_f1)
CMRC: Rule = (cmrc_exact, cmrc_f1)


def best(prediction: str, golds: Answers, rule: Rule = SQUAD) -> tuple[float, float]:
    """Give exact match and F1, each with the reference that suits it best; a question without answers wants ""."""
    exact, f1 = rule
    golds = [gold for gold in golds if not exact("", gold)] or [""]  # an empty reference does not make silence right
    return max(exact(prediction, gold) for gold in golds), max(f1(prediction, gold) for gold in golds)


def answers(predictions: Sequence[str], golds: Sequence[Answers], rule: Rule = SQUAD) -> Figures:
    """Measure predicted texts against each question's references: exact and f1.

    Where some questions have no reference (SQuAD 2.0) also exact and f1 over those with (`/has_answer`) and without
    (`/no_answer`).
    """
    same_length(predictions=predictions, questions=golds)
    check(not any(isinstance(g, str) for g in golds), "give each question's references as a list of texts")
    found_N2 = np.array([best(p, g, rule) for p, g in zip(predictions, golds)])
    answered = np.array([len(g) > 0 for g in golds])
    parts = {"": np.ones(len(golds), bool)}
    if not answered.all():
        parts |= {"/has_answer": answered, "/no_answer": ~answered}
    return {
        f"{name}{part}": mean(found_N2[chosen, k])
        for part, chosen in parts.items()
        if chosen.any()
        for k, name in enumerate(("exact", "f1"))
    }


@dataclass(frozen=True)
class Threshold:
    """A bound on the odds of "no answer" above which "" is predicted, and the value that it gives."""

    bound: float
    value: float


def best_threshold(
    predictions: Sequence[str], golds: Sequence[Answers], odds_N: np.ndarray, metric: str = "f1", rule: Rule = SQUAD
) -> Threshold:
    """Find the bound on `odds_N` (score of no answer less that of the best span) that gives the most exact match or F1.

    `predictions` are the best spans. Bounds between two equal odds do not exist, so these fall on one side together, unlike
    in SQuAD 2.0's script, which can report a value no bound reaches. Take the bound from dev: on the same questions the
    value is too good by the choice. Of bounds as good, the lowest; -inf answers nothing.
    """
    same_length(predictions=predictions, questions=golds, odds=odds_N)
    check(metric in ("exact", "f1"), f"metric '{metric}' must be exact or f1")
    k, odds_N = ("exact", "f1").index(metric), np.asarray(odds_N, float)
    check(bool(np.isfinite(odds_N).all()), "odds must be finite")
    silent_N = np.array([best("", g, rule)[k] for g in golds])
    gain_N = np.array([best(p, g, rule)[k] for p, g in zip(predictions, golds)]) - silent_N
    order = np.argsort(odds_N, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(gain_N[order])])
    bounds = np.concatenate([[-np.inf], odds_N[order]])
    last = np.append(bounds[1:] != bounds[:-1], True)  # with equal odds all are in or out
    chosen = np.flatnonzero(last)[sums[last].argmax()]
    return Threshold(float(bounds[chosen]), float((silent_N.sum() + sums[chosen]) / len(odds_N)))


def with_threshold(predictions: Sequence[str], odds_N: np.ndarray, bound: float) -> list[str]:
    """Leave a question unanswered, "", where its odds of no answer lie above the bound."""
    same_length(predictions=predictions, odds=odds_N)
    return ["" if odds > bound else text for text, odds in zip(predictions, odds_N)]


def best_thresholds(spans: Sequence[str], golds: Sequence[Answers], odds_N: np.ndarray, rule: Rule = SQUAD) -> Figures:
    """Measure what the best bounds give, and the bounds: best_exact, best_exact_threshold, best_f1, best_f1_threshold.

    Names and meaning are those of SQuAD 2.0's script, for odds in place of its probabilities; see `best_threshold`. A bound
    that answers nothing is one below the lowest odds.
    """
    figures = {}
    for k, metric in enumerate(("exact", "f1")):
        bound = max(best_threshold(spans, golds, odds_N, metric, rule).bound, float(np.min(odds_N)) - 1)
        texts = with_threshold(spans, odds_N, bound)
        figures[f"best_{metric}"] = mean(np.array([best(text, g, rule)[k] for text, g in zip(texts, golds)]))
        figures[f"best_{metric}_threshold"] = Figure.of(bound, math.nan)
    return figures
