"""Probes by pairs of texts: which of the two a model prefers, and how its scores change when a text is disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lm.decode.score import Pair
from lm.errors import check, check_choices
from lm.evaluation.attacks.perturbations import PERTURBATIONS, perturb
from lm.evaluation.files import items
from lm.evaluation.metrics.statistics import Figure, Figures, bootstrap_sums, divide, mean, proportion, sign_test
from lm.evaluation.pseudo_likelihood import masked_logprobs
from lm.evaluation.subject import Subject


def sentence_logprobs(subject: Subject, texts: Sequence[str]) -> np.ndarray:
    """Give (summed log-probability, tokens) of each text, (N, 2): a masked model's are pseudo-log-likelihoods."""
    tokenizer, texts = subject.tokenizer, list(texts)
    if subject.objective.writes != "text":
        rows = tokenizer.encode_batch(texts)
        check(all(len(ids) for ids in rows), "a text without tokens has no probability")
        found = masked_logprobs(subject, rows)
        return np.array([[x.sum(dtype=float), len(x)] for x in found])
    objective = subject.writer.objective
    lead = objective.lead(tokenizer)
    rows, start = [np.array([*lead, *ids], np.int32) for ids in objective.encode(tokenizer, texts)], max(1, len(lead))
    bare = next((text for text, ids in zip(texts, rows) if len(ids) <= start), None)
    check(bare is None, f"{bare!r} has no token that another one precedes: such a text has no probability")
    scored = subject.score("sentences", [Pair(objective.given(ids[:start]), ids[start:]) for ids in rows])
    return np.array([[one.logprobs.sum(dtype=float), len(one.logprobs)] for one in scored])


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two sentences that differ in one thing: JSON lines with `first` and `second`, fields that hold them.

    `preferred` is the share of pairs whose first sentence is likelier: acceptability (BLiMP, Warstadt et al. 2020:
    first="sentence_good") or a bias probed by a template (CrowS-Pairs, Nangia et al. 2020, where 0.5 is the ideal);
    `difference` the mean of log p(first) - log p(second), `sign_p` the sign test's p.
    """

    path: str
    first: str = "first"
    second: str = "second"

    def measure(self, subject: Subject) -> Figures:
        found = items(self.path)
        texts = [item.text(name) for name in (self.first, self.second) for item in found]
        first, second = np.split(sentence_logprobs(subject, texts)[:, 0], 2)
        difference = first - second
        more, less = int((difference > 0).sum()), int((difference < 0).sum())
        p = sign_test(more, less)
        return {
            "preferred": proportion(more, len(found)),
            "difference": mean(difference),
            "sign_p": Figure(p, float("nan"), float("nan"), float("nan")),
        }


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What disturbed characters or words cost: texts (`field` of JSON lines) clean, and with `rate` of their letters hit.

    Figures are nats a byte of the clean text, so that more tokens count as worse: "clean", "disturbed" and "delta", on the
    same draws. `how`: see `lm.evaluation.attacks.perturbations`.
    """

    path: str
    field: str = "text"
    how: Literal[tuple(PERTURBATIONS)] = "swap_letters"
    rate: float = 0.1

    def __post_init__(self):
        check_choices(self)
        check(0 < self.rate <= 1, f"rate={self.rate} must be above 0 and at most 1")

    def measure(self, subject: Subject) -> Figures:
        clean = [item.text(self.field) for item in items(self.path)]
        noisy = perturb(clean, PERTURBATIONS[self.how], self.rate, subject.seed)
        nats = np.split(-sentence_logprobs(subject, [*clean, *noisy])[:, 0], 2)
        size = np.array([len(text.encode()) for text in clean])
        rates = {
            "clean": lambda s: divide(s[..., 0], s[..., 2]),
            "disturbed": lambda s: divide(s[..., 1], s[..., 2]),
            "delta": lambda s: divide(s[..., 1] - s[..., 0], s[..., 2]),
        }
        return bootstrap_sums(np.stack([*nats, size], 1), rates, subject.seed)
