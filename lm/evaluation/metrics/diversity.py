"""Generated text by itself: how varied it is, and how much it repeats."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.statistics import Figures, jackknife, mean

Text = str | Sequence[Hashable]  # a string is cut at white space in lower case; anything else is tokens already


def tokens(text: Text) -> list[Hashable]:
    """Give a text's tokens. Chinese strings have no spaces: pass list(text)."""
    return text.lower().split() if isinstance(text, str) else list(text)


def ngrams(text: Sequence[Hashable], n: int) -> list[tuple]:
    """List all runs of n tokens."""
    return list(zip(*(text[i:] for i in range(n))))


def diversity(texts: Sequence[Text], orders: Sequence[int] = (1, 2, 3, 4), seed: int = 0) -> Figures:
    """Measure distinct_N, n-grams that differ as a share of all in the corpus (Li et al. 2016), and entropy_N, nats of
    the n-grams' frequencies (Zhang et al. 2018).

    Distinct falls as a corpus grows: compare systems on equally many tokens. Errors leave groups of texts out.
    """
    check(len(texts) > 0, "nothing to measure: no texts")
    cut = [tokens(text) for text in texts]
    found: Figures = {}
    for n in orders:
        names: dict[tuple, int] = {}
        ids = [np.array([names.setdefault(g, len(names)) for g in ngrams(text, n)], int) for text in cut]
        found |= jackknife(partial(_frequencies, ids=ids, kinds=len(names), n=n), len(cut), seed)
    return found


def _frequencies(chosen: np.ndarray, ids: Sequence[np.ndarray], kinds: int, n: int) -> dict[str, float]:
    """Distinct and entropy of the chosen texts' n-grams, which `ids` numbers; NaN where there are none."""
    counts = np.bincount(np.concatenate([ids[i] for i in chosen]), minlength=kinds)
    if not counts.sum():
        return {f"distinct_{n}": math.nan, f"entropy_{n}": math.nan}
    share = counts[counts > 0] / counts.sum()
    return {f"distinct_{n}": len(share) / counts.sum(), f"entropy_{n}": float(-(share * np.log(share)).sum())}


def repetition(texts: Sequence[Text], window: int = 128) -> Figures:
    """Measure repetition within each text, as means over texts: give continuations without their prompts.

    rep_2, rep_3, rep_4: 1 - distinct / all n-grams; seq_rep_4 is rep_4 by its name in Welleck et al. 2020; `diversity` is
    the product of 1 - rep_n (Su et al. 2022); rep_w: tokens that are among the `window` before them. A text too short for a
    figure is left out of it.
    """
    check(len(texts) > 0, "nothing to measure: no texts")
    cut = [tokens(text) for text in texts]
    found = {f"rep_{n}": [repeated(text, n) for text in cut] for n in (2, 3, 4)}
    found["seq_rep_4"] = found["rep_4"]
    found["diversity"] = [math.prod(1 - x for x in three) for three in zip(*(found[f"rep_{n}"] for n in (2, 3, 4)))]
    found["rep_w"] = [returning(text, window) for text in cut]
    known = {name: [v for v in values if not math.isnan(v)] for name, values in found.items()}
    return {name: mean(values if values else [math.nan]) for name, values in known.items()}


def repeated(text: Sequence[Hashable], n: int) -> float:
    """Share of n-grams that repeat one of the text; NaN where there are none."""
    every = ngrams(text, n)
    return 1 - len(set(every)) / len(every) if every else math.nan


def returning(text: Sequence[Hashable], window: int) -> float:
    """Share of tokens that occur among the `window` before them."""
    seen: dict[Hashable, int] = {}
    hits = 0
    for i, token in enumerate(text):
        hits += i - seen.get(token, i - window - 1) <= window
        seen[token] = i
    return hits / len(text) if text else math.nan


def self_bleu(texts: Sequence[Text], order: int = 4) -> Figures:
    """Measure self_bleu_N, the mean BLEU of each text with all others as references (Zhu et al. 2018), fraction of 1.

    Smoothed as there: a precision without a match has 0.1 for its numerator (Chen & Cherry 2014, method 1). The error takes
    the texts' values as independent, which they are only nearly.
    """
    cut = [tokens(text) for text in texts]
    check(len(cut) > 1, "self-BLEU compares texts with each other: give at least two")
    precisions_NO = np.stack([_precisions(cut, n) for n in range(1, order + 1)], 1)
    lengths = [len(text) for text in cut]
    ordered = sorted(lengths)
    penalties = [_brevity(length, ordered) for length in lengths]
    with np.errstate(divide="ignore"):
        means_N = np.exp(np.log(precisions_NO).mean(1))
    return {f"self_bleu_{order}": mean(means_N * penalties)}


def _precisions(cut: Sequence[Sequence[Hashable]], n: int) -> np.ndarray:
    """Clipped n-gram precision of each text, its n-grams clipped at the most that one other text has.

    That most is the corpus's highest count, or the second highest for the text that holds the highest.
    """
    counts = [Counter(ngrams(text, n)) for text in cut]
    first: dict[tuple, tuple[int, int]] = {}
    second: Counter = Counter()
    for i, own in enumerate(counts):
        for gram, times in own.items():
            top = first.get(gram, (0, -1))
            second[gram] = max(second[gram], min(times, top[0]))
            if times > top[0]:
                first[gram] = (times, i)
    found = []
    for i, own in enumerate(counts):
        most = {gram: second[gram] if first[gram][1] == i else first[gram][0] for gram in own}
        hits, total = sum(min(times, most[gram]) for gram, times in own.items()), max(own.total(), 1)
        found.append(0.0 if n == 1 and not hits else (hits or 0.1) / total)
    return np.array(found)


def _brevity(length: int, ordered: list[int]) -> float:
    """Brevity penalty of a text of that length against the closest length of another, the shorter of two as close."""
    place = bisect_left(ordered, length)
    others = ordered[max(place - 1, 0) : place] + ordered[place + 1 : place + 2]
    closest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length > closest else math.exp(1 - closest / length) if length else 0.0
