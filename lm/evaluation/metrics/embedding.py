"""Sentence embeddings: similarity of meaning, geometry and retrieval, from the vectors alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.classification import pearson, spearman
from lm.evaluation.metrics.statistics import Figure, Figures, bootstrap, mean, proportion, same_length


def normalised(vectors_ND: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, float64; a zero row stays zero."""
    vectors_ND = np.asarray(vectors_ND, float)
    check(vectors_ND.ndim == 2, f"embeddings must be (sentences, size), not {vectors_ND.shape}")
    check(bool(np.isfinite(vectors_ND).all()), "embeddings must be finite")
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(lengths > 0, lengths, 1)


def cosine(first_ND: np.ndarray, second_ND: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows, (N,)."""
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
    """Measure STS: `spearman` (and `pearson`) of cosines with gold scores over all pairs put together, the "all" setting.

    Published tables have it times 100. With the subset of each pair given also spearman/SUBSET and their unweighted mean,
    `spearman_mean`, which some papers report instead (Gao et al. 2021, appendix B).
    """
    cosines = cosine(first_ND, second_ND)
    same_length(pairs=cosines, gold=gold_N)
    gold = np.asarray(gold_N, float)
    names = np.zeros(len(gold), int) if subsets is None else np.asarray(subsets)
    same_length(pairs=cosines, subsets=names)
    parts = [] if subsets is None else sorted(set(names.tolist()))

    def measure(i: np.ndarray) -> dict[str, float]:
        found = {"spearman": spearman(cosines[i], gold[i]), "pearson": pearson(cosines[i], gold[i])}
        each = {p: i[names[i] == p] for p in parts}
        of_parts = {f"spearman/{p}": spearman(cosines[j], gold[j]) if len(j) else math.nan for p, j in each.items()}
        return found | of_parts | ({"spearman_mean": float(np.mean([*of_parts.values()]))} if parts else {})

    return bootstrap(measure, len(gold), seed)


def alignment(first_ND: np.ndarray, second_ND: np.ndarray) -> Figures:
    """Measure how near positive pairs lie: mean squared distance of unit vectors, 0 to 4 (Wang & Isola 2020)."""
    same_length(first=first_ND, second=second_ND)
    return {"alignment": mean(((normalised(first_ND) - normalised(second_ND)) ** 2).sum(1))}


def uniformity(vectors_ND: np.ndarray, block: int = 1024) -> Figures:
    """Measure how evenly unit vectors fill the sphere: log of the mean of exp(-2 d^2) over pairs, lower is more even.

    Wang & Isola 2020. The error leaves out one vector at a time, exactly.
    """
    unit_ND = normalised(vectors_ND)
    size = len(unit_ND)
    check(size > 2, "uniformity needs at least three vectors")
    starts = range(0, size, block)
    sums_N = np.concatenate([np.exp(4 * (unit_ND[i : i + block] @ unit_ND.T) - 4).sum(1) for i in starts])
    lengths = (unit_ND**2).sum(1)
    check(bool(np.allclose(lengths, 1)), "uniformity: a vector of zeros has no direction")
    sums_N -= 1  # itself
    value = math.log(sums_N.sum() / (size * (size - 1)))
    without_N = np.log((sums_N.sum() - 2 * sums_N) / ((size - 1) * (size - 2)))
    error = math.sqrt((size - 1) * np.mean((without_N - without_N.mean()) ** 2))
    return {"uniformity": Figure.of(value, error)}


def relevance(prompts_ND: np.ndarray, continuations_ND: np.ndarray) -> Figures:
    """Measure how near continuations stay to their prompts: mean cosine, and how much above other prompts' (`lift`)."""
    found = cosine(prompts_ND, continuations_ND)
    figures = {"relevance": mean(found)}
    if len(found) < 2:
        return figures
    a, b = normalised(prompts_ND), normalised(continuations_ND)
    others = (b @ a.sum(0) - found) / (len(found) - 1)
    return figures | {"lift": mean(found - others)}


def retrieval(
    queries_QD: np.ndarray,
    documents_ND: np.ndarray,
    relevant: Sequence[Collection[int]],
    cutoffs: Sequence[int] = (1, 5, 10),
) -> Figures:
    """Rank documents by cosine: accuracy@K (a relevant one among the first K) and mrr (mean of 1 / the first one's rank).

    `relevant` holds the document numbers of each query. Another document with an equal cosine counts as before it, so that
    embeddings that tell nothing apart earn nothing.
    """
    same_length(queries=queries_QD, relevant=relevant)
    queries_QD, documents_ND = normalised(queries_QD), normalised(documents_ND)
    check(queries_QD.shape[1] == documents_ND.shape[1], "queries and documents must be embedded in one size")
    ranks = np.array(
        [first_rank(documents_ND @ q, wanted, i) for i, (q, wanted) in enumerate(zip(queries_QD, relevant))]
    )
    found = {f"accuracy@{k}": proportion(int((ranks <= k).sum()), len(ranks)) for k in cutoffs}
    return found | {"mrr": mean(1 / ranks)}


def first_rank(scores_N: np.ndarray, wanted: Collection[int], query: int) -> int:
    """Rank of the best relevant document, from 1."""
    chosen = [*wanted]
    within = bool(chosen) and min(chosen) >= 0 and max(chosen) < len(scores_N)
    check(within, f"query {query}: give the numbers of its relevant documents, each in 0..{len(scores_N) - 1}")
    others = np.ones(len(scores_N), bool)
    others[chosen] = False
    return 1 + int((scores_N[others] >= scores_N[chosen].max() - 1e-12).sum())
