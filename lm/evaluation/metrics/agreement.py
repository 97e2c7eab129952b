"""Inter-annotator agreement: Fleiss' kappa and Krippendorff's alpha, bootstrapped over items."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np

from lm.errors import UserError, check, unknown
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide, same_length


def fleiss_kappa(counts_NK: np.ndarray, seed: int = 0) -> Figures:
    """Compute `fleiss_kappa` (Fleiss 1971) and raw `agreement` from counts of judgements by item and category.

    Each item needs the same number of judges, who may be different people.
    """
    counts_NK = np.asarray(counts_NK, float)
    check(counts_NK.ndim == 2 and len(counts_NK) > 0, "counts must be (items, categories)")
    judges = counts_NK.sum(1)
    odd = np.flatnonzero(judges != judges[0])
    if len(odd):
        counted = f"item {odd[0]} has {judges[odd[0]]:g} judgements, item 0 {judges[0]:g}"
        raise UserError(f"{counted}: use krippendorff_alpha")
    check(judges[0] > 1, "agreement needs at least two judgements an item")
    agreed_N = (counts_NK * (counts_NK - 1)).sum(1) / (judges * (judges - 1))

    def agreement(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    def kappa(sums: np.ndarray) -> np.ndarray:
        chance = ((sums[..., 2:] / sums[..., 2:].sum(-1, keepdims=True)) ** 2).sum(-1)
        return divide(agreement(sums) - chance, 1 - chance, np.nan)

    # Both figures are functions of these sums: a resample of items is a sum of their rows.
    rows = np.column_stack([agreed_N, np.ones(len(judges)), counts_NK])
    return bootstrap_sums(rows, {"fleiss_kappa": kappa, "agreement": agreement}, seed)


def krippendorff_alpha(
    ratings_NJ: Sequence[Sequence[Hashable | None]], level: Literal["nominal", "interval"] = "nominal", seed: int = 0
) -> Figures:
    """Compute `krippendorff_alpha` (Krippendorff 2011) of items rated by any judges; None marks a missing rating.

    `interval` weights disagreement by the squared difference of numeric ratings. Items with fewer than two ratings are
    ignored. NaN where all ratings are equal.
    """
    if level not in ("nominal", "interval"):
        raise unknown("level", level, ("nominal", "interval"))
    paired = [[r for r in ratings if r is not None] for ratings in ratings_NJ]
    paired = [ratings for ratings in paired if len(ratings) > 1]
    check(len(paired) > 0, "no item has two ratings: agreement is undefined")
    known: set[Any] = {r for ratings in paired for r in ratings}
    names = sorted(known)
    size = len(names)
    counts_NK = np.array([[ratings.count(name) for name in names] for ratings in paired], float)
    values = np.array(names, float) if level == "interval" else np.arange(size)
    cost_KK = np.subtract.outer(values, values) ** 2 if level == "interval" else 1 - np.eye(size)
    # An item adds the cost of its pairs of ratings, each rating sharing one unit, and its count of each category.
    pairs_N = np.einsum("nk,kj,nj->n", counts_NK, cost_KK, counts_NK) / (counts_NK.sum(1) - 1)

    def alpha(sums: np.ndarray) -> np.ndarray:
        counts = sums[..., 1:]
        # Two ratings drawn from all without replacement: n (n - 1) pairs, of which the n cancels against the observed
        # side's.
        chance = np.einsum("...k,kj,...j->...", counts, cost_KK, counts) / (counts.sum(-1) - 1)
        return 1 - divide(sums[..., 0], chance, np.nan)

    return bootstrap_sums(np.column_stack([pairs_N, counts_NK]), {"krippendorff_alpha": alpha}, seed)


def counts_of(ratings_NJ: Sequence[Sequence[Hashable]]) -> tuple[np.ndarray, list[Hashable]]:
    """Count the ratings of each item by category for `fleiss_kappa`: counts (N, K), and the categories."""
    same_length(items=ratings_NJ)
    known: set[Any] = {r for ratings in ratings_NJ for r in ratings}
    names = sorted(known)
    return np.array([[list(ratings).count(name) for name in names] for ratings in ratings_NJ]), names
