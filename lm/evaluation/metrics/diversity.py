"""Diversity and repetition of generated text: distinct-n, entropy, rep-n, self-BLEU."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.statistics import Figures, jackknife, mean

Text = str | Sequence[Hashable]  # a string is lower-cased and split at white space; other sequences are tokens


def tokens(text: Text) -> list[Hashable]:
    """Split a text into tokens. Chinese strings have no spaces: pass list(text)."""
    return [*text.lower().split()] if isinstance(text, str) else list(text)


def ngrams(text: Sequence[Hashable], n: int) -> list[tuple]:
    """List the n-grams of a text, repeats included."""
    return list(zip(*(text[i:] for i in range(n))))


def diversity(texts: Sequence[Text], orders: Sequence[int] = (1, 2, 3, 4), seed: int = 0) -> Figures:
    """Measure distinct_N, distinct n-grams as a share of all in the corpus (Li et al. 2016), and entropy_N, the entropy of
    n-gram frequencies in nats (Zhang et al. 2018).

    Distinct-n falls as a corpus grows: compare systems on equally many tokens. Errors by the delete-a-group jackknife.
    """
    check(len(texts) > 0, "nothing to measure: no texts")
    split = [tokens(text) for text in texts]
    figures: Figures = {}
    for n in orders:
        # Numbered once, so that each of the jackknife's samples is a count of integers.
        names: dict[tuple, int] = {}
        ids = [np.array([names.setdefault(g, len(names)) for g in ngrams(text, n)], int) for text in split]
        figures |= jackknife(partial(_frequencies, ids=ids, kinds=len(names), n=n), len(split), seed)
    return figures


def _frequencies(chosen: np.ndarray, ids: Sequence[np.ndarray], kinds: int, n: int) -> dict[str, float]:
    """Compute distinct-n and entropy of the chosen texts from n-gram ids; NaN without n-grams."""
    counts = np.bincount(np.concatenate([ids[i] for i in chosen]), minlength=kinds)
    if not counts.sum():
        return {f"distinct_{n}": math.nan, f"entropy_{n}": math.nan}
    share = counts[counts > 0] / counts.sum()
    return {f"distinct_{n}": len(share) / counts.sum(), f"entropy_{n}": float(-(share * np.log(share)).sum())}


def repetition(texts: Sequence[Text], window: int = 128) -> Figures:
    """Measure repetition within texts (continuations without their prompts), as means over texts.

    rep_2, rep_3, rep_4: 1 - distinct / all n-grams; seq_rep_4 is rep_4 under its name in Welleck et al. 2020; `diversity` is
    the product of 1 - rep_n (Su et al. 2022); rep_w: share of tokens that occur among the `window` before them. Texts too
    short for a figure do not count in it.
    """
    check(len(texts) > 0, "nothing to measure: no texts")
    split = [tokens(text) for text in texts]
    rates = {f"rep_{n}": [repeated(text, n) for text in split] for n in (2, 3, 4)}
    rates["seq_rep_4"] = rates["rep_4"]
    rates["diversity"] = [math.prod(1 - x for x in three) for three in zip(*(rates[f"rep_{n}"] for n in (2, 3, 4)))]
    rates["rep_w"] = [returning(text, window) for text in split]
    known = {name: [v for v in values if not math.isnan(v)] for name, values in rates.items()}
    return {name: mean(values if values else [math.nan]) for name, values in known.items()}


def repeated(text: Sequence[Hashable], n: int) -> float:
    """Return the share of n-grams that repeat an earlier one; NaN without n-grams."""
    every = ngrams(text, n)
    return 1 - len(set(every)) / len(every) if every else math.nan


def returning(text: Sequence[Hashable], window: int) -> float:
    """Return the share of tokens that occur among the `window` before them."""
    seen: dict[Hashable, int] = {}
    hits = 0
    for i, token in enumerate(text):
        # The latest occurrence decides; a token not seen yet counts as one just outside the window.
        hits += i - seen.get(token, i - window - 1) <= window
        seen[token] = i
    return hits / len(text) if text else math.nan


def self_bleu(texts: Sequence[Text], order: int = 4) -> Figures:
    """Measure self_bleu_N, the mean BLEU of each text with all others as references (Zhu et al. 2018), fraction of 1.

    Smoothed as in the paper: a precision without a match has the numerator 0.1 (Chen & Cherry 2014, method 1). The error
    treats the texts' values as independent, which they are only nearly.
    """
    split = [tokens(text) for text in texts]
    check(len(split) > 1, "self-BLEU compares texts with each other: at least two are needed")
    precisions_NO = np.stack([_precisions(split, n) for n in range(1, order + 1)], 1)
    lengths = [len(text) for text in split]
    ordered = sorted(lengths)
    penalties = [_brevity(length, ordered) for length in lengths]
    with np.errstate(divide="ignore"):
        means_N = np.exp(np.log(precisions_NO).mean(1))
    return {f"self_bleu_{order}": mean(means_N * penalties)}


def _precisions(texts: Sequence[Sequence[Hashable]], n: int) -> np.ndarray:
    """Compute each text's n-gram precision, (N,), with counts clipped at the largest count in one other text."""
    counts = [Counter(ngrams(text, n)) for text in texts]
    # The largest count of each n-gram with its text, and the second largest, which clips that text itself: linear in the
    # corpus, where comparing each text with all others is quadratic.
    first: dict[tuple, tuple[int, int]] = {}
    second: Counter = Counter()
    for i, own in enumerate(counts):
        for gram, times in own.items():
            top = first.get(gram, (0, -1))
            second[gram] = max(second[gram], min(times, top[0]))
            if times > top[0]:
                first[gram] = (times, i)
    precisions = []
    for i, own in enumerate(counts):
        most = {gram: second[gram] if first[gram][1] == i else first[gram][0] for gram in own}
        hits, total = sum(min(times, most[gram]) for gram, times in own.items()), max(own.total(), 1)
        # Without a shared word BLEU is 0: only the higher orders are smoothed.
        precisions.append(0.0 if n == 1 and not hits else (hits or 0.1) / total)
    return np.array(precisions)


def _brevity(length: int, ordered: list[int]) -> float:
    """Compute the brevity penalty against the closest other length, of two equally close the shorter."""
    at = bisect_left(ordered, length)
    # The entry at `at` is the text itself, or one of the same length: it is left out once.
    others = ordered[max(at - 1, 0) : at] + ordered[at + 1 : at + 2]
    closest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length > closest else math.exp(1 - closest / length) if length else 0.0
