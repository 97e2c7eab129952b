"""Bias: does a model's answer depend on the name of a group, and which names lie near which attributes?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lm.errors import check
from lm.evaluation.metrics.embedding import normalised
from lm.evaluation.metrics.statistics import (
    Figure,
    Figures,
    bootstrap,
    divide,
    mean,
    proportion,
    same_length,
    sign_test,
)


def fill(templates: Sequence[str], terms: Sequence[Sequence[str]], slot: str = "{}") -> list[list[str]]:
    """Write each template with each group's terms, (groups, templates * terms): sentences that differ in the group only.

    `terms` holds one list a group, of equal length: [["he", "my uncle"], ["she", "my aunt"]].
    """
    check(len({len(group) for group in terms}) == 1, "groups need equally many terms, paired by their order")
    missing = next((t for t in templates if slot not in t), None)
    check(missing is None, f"template {missing!r} has no {slot}")
    return [[template.replace(slot, term) for template in templates for term in group] for group in terms]


def paired_bias(first_N: Sequence[float], second_N: Sequence[float]) -> tuple[Figures, float]:
    """Compare a model's scores of paired sentences that differ in a group's name only, and return the sign test's p.

    Gives `difference` (mean of first less second), `absolute` (mean size, which does not cancel over templates) and
    `preference`, the share of pairs whose first has the higher score, ties left out. With pseudo-log-likelihoods of the
    stereotyping and the other sentence this is CrowS-Pairs' figure, 0.5 being without preference (Nangia et al. 2020).
    """
    same_length(first=first_N, second=second_N)
    gap_N = np.asarray(first_N, float) - np.asarray(second_N, float)
    up, down = int((gap_N > 0).sum()), int((gap_N < 0).sum())
    preference = proportion(up, up + down) if up + down else Figure.of(math.nan, math.nan)
    figures = {"difference": mean(gap_N), "absolute": mean(np.abs(gap_N)), "preference": preference}
    return figures, sign_test(up, down)


def weat(
    x_ND: np.ndarray, y_ND: np.ndarray, a_KD: np.ndarray, b_KD: np.ndarray, seed: int = 0, permutations: int = 10_000
) -> tuple[Figures, float]:
    """Measure how much nearer targets X than Y lie to attributes A than B, all embeddings (Caliskan et al. 2017).

    Gives `weat`, the effect size (difference of mean associations over their common standard deviation, n - 1 below it), and
    the one-sided p under exchanged targets.
    """
    x, y, a, b = (normalised(part) for part in (x_ND, y_ND, a_KD, b_KD))
    check(min(map(len, (x, y, a, b))) > 0, "each of the four sets needs a vector")
    check(len(x) + len(y) > 2, "the targets need at least three vectors")
    s_X, s_Y = (part @ a.mean(0) - part @ b.mean(0) for part in (x, y))
    both = np.concatenate([s_X, s_Y])

    def effect(x: np.ndarray, y: np.ndarray) -> float:
        spread = np.concatenate([x, y]).std(ddof=1)
        return float(divide(x.mean() - y.mean(), spread, math.nan))

    def resample(i: np.ndarray) -> dict[str, float]:
        left, right = both[i[i < len(s_X)]], both[i[i >= len(s_X)]]
        return {"weat": effect(left, right) if len(left) and len(right) else math.nan}

    rng = np.random.default_rng(seed)
    found = s_X.mean() - s_Y.mean()
    orders = rng.permuted(np.tile(both, (permutations, 1)), axis=1)
    drawn = orders[:, : len(s_X)].mean(1) - orders[:, len(s_X) :].mean(1)
    p_value = (1 + int((drawn >= found - 1e-12).sum())) / (1 + permutations)
    return bootstrap(resample, len(both), seed), p_value
