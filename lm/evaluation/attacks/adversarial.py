"""Adversarial word substitution by greedy search: TextFooler (Jin et al. 2020) and PWWS (Ren et al. 2019).

TextFooler ranks words by the fall of the true class's probability without them and replaces each by the synonym that lowers
it most, until the prediction flips; PWWS weights the ranking by the gain of the best synonym. Neither's filters (part of
speech, sentence similarity) are implemented: restrict `synonyms` instead, and have people read the changed texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lm.errors import check, unknown
from lm.evaluation.metrics.statistics import Figures, mean, proportion, same_length

Predict = Callable[[list[str]], np.ndarray]  # texts -> probabilities (N, C)
Synonyms = Callable[[str], list[str]]


@dataclass(frozen=True)
class Attack:
    """Result of an attack on one text: the changed text, its replaced words, and the number of classifier queries.

    `was_right`: the clean text was classified correctly (otherwise there was no search). `flipped`: the changed text is not.
    `probability`: that of the true class at the end.
    """

    text: str
    changed: str
    replaced: tuple[tuple[str, str], ...]
    words: int
    queries: int
    was_right: bool
    flipped: bool
    probability: float


class _Counted:
    """Classifier with a count of the texts it was queried for."""

    def __init__(self, predict: Predict):
        self.predict, self.count = predict, 0

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.count += len(texts)
        shares_NC = np.asarray(self.predict(texts), float)
        right = shares_NC.ndim == 2 and len(shares_NC) == len(texts)
        check(right, f"predict returned {shares_NC.shape} for {len(texts)} texts")
        return shares_NC


def attack(
    text: str,
    label: int,
    predict: Predict,
    synonyms: Synonyms,
    order: Literal["deletion", "saliency"] = "deletion",
    most: float = 1.0,
    unknown_word: str = "[UNK]",
) -> Attack:
    """Attack one text, replacing at most the share `most` of its words.

    `order`: TextFooler's "deletion", or PWWS's "saliency", the softmax of the fall when a word becomes `unknown_word`, times
    the fall by its best synonym. Substitutes keep the word's capitalisation.
    """
    if order not in ("deletion", "saliency"):
        raise unknown("order", order, ("deletion", "saliency"))
    parts = re.split(r"(\w+(?:['’]\w+)*)", text)  # words at odd indices, separators at even ones
    places, ask = list(range(1, len(parts), 2)), _Counted(predict)
    (clean_C,) = ask([text])
    check(0 <= label < len(clean_C), f"label {label} is none of the {len(clean_C)} classes")
    right = int(clean_C.argmax()) == label
    best, flipped = float(clean_C[label]), False
    replaced: list[Any] = []
    if right and places:
        # The order is fixed before the first substitution, as in both papers: ranking again after each would cost a query
        # per word and step.
        gone = [_with(parts, i, "" if order == "deletion" else unknown_word) for i in places]
        importance = _importance(ask(gone), clean_C, label)
        if order == "saliency":
            importance = _weighted(importance, parts, places, label, best, ask, synonyms)
        # Stable: words of equal importance fall in the order of the text, on any machine.
        for k in np.argsort(-importance, kind="stable"):
            if len(replaced) + 1 > most * len(places) or flipped:
                break
            i, word = places[k], parts[places[k]]
            options = _options(word, synonyms)
            if not options:
                continue
            # All synonyms of a word are one batch.
            shares_NC = ask([_with(parts, i, option) for option in options])
            chosen = _chosen(shares_NC, label)
            if shares_NC[chosen, label] >= best and shares_NC[chosen].argmax() == label:
                continue  # no synonym lowers the true class
            parts[i], best = options[chosen], float(shares_NC[chosen, label])
            replaced.append((word, options[chosen]))
            flipped = int(shares_NC[chosen].argmax()) != label
    return Attack(text, "".join(parts), tuple(replaced), len(places), ask.count, right, flipped, best)


def _with(parts: list[str], i: int, word: str) -> str:
    """Substitute a word; a deleted word removes one adjacent space."""
    before = "".join(parts[:i])
    after = "".join(parts[i + 1 :])
    return before + word + (after.removeprefix(" ") if not word else after)


def _importance(without_NC: np.ndarray, clean_C: np.ndarray, label: int) -> np.ndarray:
    """TextFooler's I_w: fall of the true class's probability, plus the new class's rise where the prediction changes."""
    fall_N = clean_C[label] - without_NC[:, label]
    other_N = without_NC.argmax(1)
    rise_N = without_NC[np.arange(len(other_N)), other_N] - clean_C[other_N]
    return fall_N + np.where(other_N != label, rise_N, 0)


def _weighted(
    saliency_N: np.ndarray, parts: list[str], places: list[int], label: int, clean: float, ask: _Counted, synonyms: Synonyms
) -> np.ndarray:
    """PWWS's order (N,): softmax of saliency times the fall by the best synonym, -inf without synonyms."""
    gains = []
    for i in places:
        options = _options(parts[i], synonyms)
        shares = ask([_with(parts, i, option) for option in options])[:, label] if options else np.array([np.inf])
        gains.append(clean - shares.min())
    share = np.exp(saliency_N - saliency_N.max())
    return share / share.sum() * np.array(gains)


def _options(word: str, synonyms: Synonyms) -> list[str]:
    """List distinct substitutes other than the word, in its capitalisation."""
    cased = [s.capitalize() if word.istitle() else s.upper() if word.isupper() and len(word) > 1 else s for s in synonyms(word)]
    return list(dict.fromkeys(option for option in cased if option and option.lower() != word.lower()))


def _chosen(shares_NC: np.ndarray, label: int) -> int:
    """Select the flipping option with the lowest probability of the true class; without a flip the lowest of all."""
    flips_N = shares_NC.argmax(1) != label
    return int(np.where(flips_N | ~flips_N.any(), shares_NC[:, label], np.inf).argmin())


def attacks(
    texts: Sequence[str],
    labels: Sequence[int],
    predict: Predict,
    synonyms: Synonyms,
    order: Literal["deletion", "saliency"] = "deletion",
    most: float = 1.0,
    unknown_word: str = "[UNK]",
) -> tuple[Figures, list[Attack]]:
    """Attack each text of one classifier; return the figures (`summarise`) and the attacks."""
    same_length(texts=texts, labels=labels)
    results = [attack(text, label, predict, synonyms, order, most, unknown_word) for text, label in zip(texts, labels)]
    return summarise(results), results


def summarise(results: Sequence[Attack]) -> Figures:
    """Return clean (accuracy), attacked (accuracy under attack), delta, and of correctly classified texts success (flips),
    changed_words (share of words replaced, of flips) and queries (of the classifier, per text).
    """
    count = len(results)
    # Success counts texts that were right: the others need no attack.
    right = [a for a in results if a.was_right]
    flips = [a for a in right if a.flipped]
    figures = {
        "clean": proportion(len(right), count),
        "attacked": proportion(len(right) - len(flips), count),
        "delta": mean([-1.0 * a.flipped for a in results]),
    }
    if right:
        figures |= {"success": proportion(len(flips), len(right)), "queries": mean([a.queries for a in right])}
    if flips:
        figures["changed_words"] = mean([len(a.replaced) / a.words for a in flips])
    return figures
