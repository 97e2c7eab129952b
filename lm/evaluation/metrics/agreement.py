"""Agreement between judges: Cohen's and Fleiss' kappa and Krippendorff's alpha, with errors from resampled items."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from lm.errors import UserError, check, unknown
from lm.evaluation.metrics.classification import confusion
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide, same_length

Weights = Literal["none", "linear", "quadratic"]


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    weights: Weights = "none",
    categories: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Figures:
    """Measure `cohen_kappa` of two judges of the same items (Cohen 1960; weighted: 1968), and their plain `agreement`.

    Weights of disagreement grow with the distance of categories in the order given, sorted otherwise. NaN where both judges
    gave one and the same category throughout: chance alone explains that.
    """
    if weights not in ("none", "linear", "quadratic"):
        raise unknown("weights", weights, ("none", "linear", "quadratic"))
    counts_KK, names = confusion(first, second, categories)
    size = len(names)
    apart_KK = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(float)
    cost_KK = {"none": (apart_KK > 0) * 1.0, "linear": apart_KK, "quadratic": apart_KK**2}[weights]

    def kappa(sums: np.ndarray) -> np.ndarray:
        seen = sums.reshape(*sums.shape[:-1], size, size)
        chance = seen.sum(-1)[..., :, None] * seen.sum(-2)[..., None, :]
        expected = (cost_KK * chance).sum((-2, -1)) / sums.sum(-1)
        return 1 - divide((cost_KK * seen).sum((-2, -1)), expected, np.nan)

    def agreement(sums: np.ndarray) -> np.ndarray:
        return sums[..., :: size + 1].sum(-1) / sums.sum(-1)

    cells = np.flatnonzero(counts_KK)
    rows = np.eye(size * size)[cells]
    return bootstrap_sums(rows, {"cohen_kappa": kappa, "agreement": agreement}, seed, counts=counts_KK.ravel()[cells])


def fleiss_kappa(counts_NK: np.ndarray, seed: int = 0) -> Figures:
    """Measure `fleiss_kappa` (Fleiss 1971) from how many judges put each item into each category, and plain `agreement`.

    Each item needs the same number of judges, who need not be the same people.
    """
    counts_NK = np.asarray(counts_NK, float)
    check(counts_NK.ndim == 2 and len(counts_NK) > 0, "counts must be (items, categories)")
    judges = counts_NK.sum(1)
    odd = np.flatnonzero(judges != judges[0])
    if len(odd):
        told = f"item {odd[0]} has {judges[odd[0]]:g} judgements, item 0 {judges[0]:g}"
        raise UserError(f"{told}: use krippendorff_alpha")
    check(judges[0] > 1, "agreement needs at least two judgements an item")
    agreed_N = (counts_NK * (counts_NK - 1)).sum(1) / (judges * (judges - 1))

    def agreement(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    def kappa(sums: np.ndarray) -> np.ndarray:
        chance = ((sums[..., 2:] / sums[..., 2:].sum(-1, keepdims=True)) ** 2).sum(-1)
        return divide(agreement(sums) - chance, 1 - chance, np.nan)

    rows = np.column_stack([agreed_N, np.ones(len(judges)), counts_NK])
    return bootstrap_sums(rows, {"fleiss_kappa": kappa, "agreement": agreement}, seed)


def krippendorff_alpha(
    ratings_NJ: Sequence[Sequence[Hashable | None]], level: Literal["nominal", "interval"] = "nominal", seed: int = 0
) -> Figures:
    """Measure `krippendorff_alpha` (Krippendorff 2011) of items by any judges; None where one did not judge an item.

    `interval` takes ratings as numbers whose differences count squared. Items with fewer than two ratings say nothing. NaN
    where all ratings are the same.
    """
    if level not in ("nominal", "interval"):
        raise unknown("level", level, ("nominal", "interval"))
    paired = [[r for r in ratings if r is not None] for ratings in ratings_NJ]
    paired = [ratings for ratings in paired if len(ratings) > 1]
    check(len(paired) > 0, "no item has two ratings: agreement is undefined")
    names = sorted({r for ratings in paired for r in ratings})
    size = len(names)
    counts_NK = np.array([[ratings.count(name) for name in names] for ratings in paired], float)
    values = np.array(names, float) if level == "interval" else np.arange(size)
    cost_KK = np.subtract.outer(values, values) ** 2 if level == "interval" else 1 - np.eye(size)
    # What an item adds: the cost of its pairs of ratings, each rating sharing one unit, and its count of each category.
    pairs_N = np.einsum("nk,kj,nj->n", counts_NK, cost_KK, counts_NK) / (counts_NK.sum(1) - 1)

    def alpha(sums: np.ndarray) -> np.ndarray:
        counts = sums[..., 1:]
        chance = np.einsum("...k,kj,...j->...", counts, cost_KK, counts) / (counts.sum(-1) - 1)
        return 1 - divide(sums[..., 0], chance, np.nan)

    return bootstrap_sums(np.column_stack([pairs_N, counts_NK]), {"krippendorff_alpha": alpha}, seed)


def counts_of(ratings_NJ: Sequence[Sequence[Hashable]]) -> tuple[np.ndarray, list[Hashable]]:
    """Turn ratings by judge into the counts that Fleiss' kappa wants, (N, K), with the categories' names."""
    same_length(items=ratings_NJ)
    names = sorted({r for ratings in ratings_NJ for r in ratings})
    return np.array([[list(ratings).count(name) for name in names] for ratings in ratings_NJ]), names
