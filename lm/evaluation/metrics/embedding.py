"""Sentence embeddings: semantic similarity, alignment, uniformity, retrieval and association tests."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.classification import pearson, spearman
from lm.evaluation.metrics.statistics import Figure, Figures, bootstrap, divide, mean, proportion, same_length


def normalised(vectors_ND: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, float64; a zero row stays zero."""
    vectors_ND = np.asarray(vectors_ND, float)
    check(vectors_ND.ndim == 2, f"embeddings must be (sentences, size), not {vectors_ND.shape}")
    check(bool(np.isfinite(vectors_ND).all()), "embeddings must be finite")
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(lengths > 0, lengths, 1)


def cosine(first_ND: np.ndarray, second_ND: np.ndarray) -> np.ndarray:
    """Compute the cosine of each pair of rows, (N,)."""
    same_length(first=first_ND, second=second_ND)
    a, b = normalised(first_ND), normalised(second_ND)
    check(a.shape == b.shape, f"embeddings of sizes {a.shape[1]} and {b.shape[1]} have no cosine")
    return (a * b).sum(1)


def similarity(
    first_ND: np.ndarray,
    second_ND: np.ndarray,
    gold_N: Sequence[float],
    subsets: Sequence[str] | None = None,
    seed: int = 0,
) -> Figures:
    """Measure STS: `spearman` and `pearson` of cosines with gold scores over all pairs, the "all" setting.

    Published tables multiply by 100. `subsets` (a name per pair) adds spearman/SUBSET and their unweighted mean,
    `spearman_mean`, which some papers report instead (Gao et al. 2021, appendix B).
    """
    cosines = cosine(first_ND, second_ND)
    same_length(pairs=cosines, gold=gold_N)
    gold = np.asarray(gold_N, float)
    names = np.zeros(len(gold), int) if subsets is None else np.asarray(subsets)
    same_length(pairs=cosines, subsets=names)
    parts = [] if subsets is None else sorted(set(names.tolist()))

    # Correlations are no functions of sums: each resample computes them anew.
    def measure(i: np.ndarray) -> dict[str, float]:
        found = {"spearman": spearman(cosines[i], gold[i]), "pearson": pearson(cosines[i], gold[i])}
        each = {p: i[names[i] == p] for p in parts}
        of_parts = {f"spearman/{p}": spearman(cosines[j], gold[j]) if len(j) else math.nan for p, j in each.items()}
        return found | of_parts | ({"spearman_mean": float(np.mean([*of_parts.values()]))} if parts else {})

    return bootstrap(measure, len(gold), seed)


def alignment(first_ND: np.ndarray, second_ND: np.ndarray) -> Figures:
    """Measure alignment of positive pairs: mean squared distance of unit vectors, 0 to 4 (Wang & Isola 2020)."""
    same_length(first=first_ND, second=second_ND)
    return {"alignment": mean(((normalised(first_ND) - normalised(second_ND)) ** 2).sum(1))}


def uniformity(vectors_ND: np.ndarray, block: int = 1024) -> Figures:
    """Measure uniformity on the sphere: log mean exp(-2 d^2) over pairs (Wang & Isola 2020); lower is more uniform.

    The error is the exact leave-one-out jackknife.
    """
    unit_ND = normalised(vectors_ND)
    size = len(unit_ND)
    check(size > 2, "uniformity needs at least three vectors")
    # |u - v|^2 = 2 - 2 uv for unit vectors; blocks bound the memory of the N x N matrix.
    starts = range(0, size, block)
    sums_N = np.concatenate([np.exp(4 * (unit_ND[i : i + block] @ unit_ND.T) - 4).sum(1) for i in starts])
    lengths = (unit_ND**2).sum(1)
    check(bool(np.allclose(lengths, 1)), "uniformity: a vector of zeros has no direction")
    sums_N -= 1  # the pair of a vector with itself
    value = math.log(sums_N.sum() / (size * (size - 1)))
    # Without one vector, both its row and its column of the pairs are gone.
    without_N = np.log((sums_N.sum() - 2 * sums_N) / ((size - 1) * (size - 2)))
    error = math.sqrt((size - 1) * np.mean((without_N - without_N.mean()) ** 2))
    return {"uniformity": Figure.of(value, error)}


def relevance(prompts_ND: np.ndarray, continuations_ND: np.ndarray) -> Figures:
    """Measure relevance of continuations: mean cosine with their prompts, and `lift` over the mean with other prompts."""
    found = cosine(prompts_ND, continuations_ND)
    figures = {"relevance": mean(found)}
    if len(found) < 2:
        return figures
    a, b = normalised(prompts_ND), normalised(continuations_ND)
    # The sum of all prompts first: N products in place of N^2; less the own prompt.
    others = (b @ a.sum(0) - found) / (len(found) - 1)
    return figures | {"lift": mean(found - others)}


def retrieval(
    queries_QD: np.ndarray,
    documents_ND: np.ndarray,
    relevant: Sequence[Collection[int]],
    cutoffs: Sequence[int] = (1, 5, 10),
) -> Figures:
    """Rank documents by cosine: accuracy@K (a relevant one among the first K) and mrr (mean reciprocal rank of the first).

    `relevant`: document indices of each query. Ties rank irrelevant documents first, so that constant embeddings earn
    nothing.
    """
    same_length(queries=queries_QD, relevant=relevant)
    queries_QD, documents_ND = normalised(queries_QD), normalised(documents_ND)
    check(queries_QD.shape[1] == documents_ND.shape[1], "queries and documents must be embedded in one size")
    ranks = np.array([first_rank(documents_ND @ q, wanted, i) for i, (q, wanted) in enumerate(zip(queries_QD, relevant))])
    found = {f"accuracy@{k}": proportion(int((ranks <= k).sum()), len(ranks)) for k in cutoffs}
    return found | {"mrr": mean(1 / ranks)}


def first_rank(scores_N: np.ndarray, wanted: Collection[int], query: int) -> int:
    """Return the rank of the best relevant document, from 1."""
    chosen = [*wanted]
    within = bool(chosen) and min(chosen) >= 0 and max(chosen) < len(scores_N)
    check(within, f"query {query}: its relevant documents need indices in 0..{len(scores_N) - 1}")
    others = np.ones(len(scores_N), bool)
    others[chosen] = False
    # Equal vectors may differ by rounding: within 1e-12 they are ties.
    return 1 + int((scores_N[others] >= scores_N[chosen].max() - 1e-12).sum())


def weat(
    x_ND: np.ndarray, y_ND: np.ndarray, a_KD: np.ndarray, b_KD: np.ndarray, seed: int = 0, permutations: int = 10_000
) -> Figures:
    """Word Embedding Association Test of targets X, Y with attributes A, B (WEAT, Caliskan et al. 2017).

    Returns `weat`, the effect size (difference of mean associations over their pooled standard deviation with n - 1), and
    `weat_p`, its one-sided p under permuted targets.
    """
    x, y, a, b = (normalised(part) for part in (x_ND, y_ND, a_KD, b_KD))
    check(min(map(len, (x, y, a, b))) > 0, "each of the four sets needs a vector")
    check(len(x) + len(y) > 2, "the targets need at least three vectors")
    s_X, s_Y = (part @ a.mean(0) - part @ b.mean(0) for part in (x, y))
    both = np.concatenate([s_X, s_Y])

    def effect(i: np.ndarray) -> dict[str, float]:
        first, second = both[i[i < len(s_X)]], both[i[i >= len(s_X)]]
        if not (len(first) and len(second)):
            return {"weat": math.nan}
        spread = np.concatenate([first, second]).std(ddof=1)
        return {"weat": float(divide(first.mean() - second.mean(), spread, math.nan))}

    orders = np.random.default_rng(seed).permuted(np.tile(both, (permutations, 1)), axis=1)
    drawn = orders[:, : len(s_X)].mean(1) - orders[:, len(s_X) :].mean(1)
    # The observed arrangement is one of the permutations: with it p is never 0.
    p_value = (1 + int((drawn >= s_X.mean() - s_Y.mean() - 1e-12).sum())) / (1 + permutations)
    return {**bootstrap(effect, len(both), seed), "weat_p": Figure.of(p_value, math.nan)}
