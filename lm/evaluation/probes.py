"""Tasks on paired texts: minimal pairs (acceptability, bias) and robustness to noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.decode.score import Pair
from lm.errors import check
from lm.evaluation.attacks.perturbations import Perturbed
from lm.evaluation.files import read_examples
from lm.evaluation.metrics.statistics import Figure, Figures, bootstrap_sums, divide, mean, proportion
from lm.evaluation.pseudo_likelihood import masked_logprobs
from lm.evaluation.subject import Subject


def sentence_logprobs(subject: Subject, texts: Sequence[str]) -> np.ndarray:
    """Score texts: (summed log-probability, tokens), (N, 2); pseudo-log-likelihoods of a masked model."""
    tokenizer, texts = subject.tokenizer, list(texts)
    if subject.objective.writes != "text":
        rows = tokenizer.encode_batch(texts)
        check(all(len(ids) for ids in rows), "a text without tokens has no probability")
        return np.array([[x.sum(dtype=float), len(x)] for x in masked_logprobs(subject, rows)])
    objective = subject.writer.objective
    lead = objective.lead(tokenizer)
    rows, start = [np.array([*lead, *ids], np.int32) for ids in objective.encode(tokenizer, texts)], max(1, len(lead))
    bare = next((text for text, ids in zip(texts, rows) if len(ids) <= start), None)
    check(bare is None, f"{bare!r} has no token with a predecessor: such a text has no probability")
    # Without a lead the first token has nothing before it: it is context, and not scored.
    scored = subject.score("sentences", [Pair(objective.given(ids[:start]), ids[start:]) for ids in rows])
    return np.array([[score.logprobs.sum(dtype=float), len(score.logprobs)] for score in scored])


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Minimal pairs {"first", "second"}: share of pairs whose first sentence is likelier.

    BLiMP (Warstadt et al. 2020; first=sentence_good) measures acceptability so, CrowS-Pairs (Nangia et al. 2020) bias, with
    0.5 as the ideal. `first` and `second` name the fields. `preferred` is the share, `difference` the mean of
    log p(first) - log p(second), `sign_p` the p of the sign test, ties left out.
    """

    path: str
    first: str = "first"
    second: str = "second"

    def measure(self, subject: Subject) -> Figures:
        from scipy.stats import binomtest

        examples = read_examples(self.path)
        texts = [example.get(name) for name in (self.first, self.second) for example in examples]
        first, second = np.split(sentence_logprobs(subject, texts)[:, 0], 2)
        difference = first - second
        more, less = int((difference > 0).sum()), int((difference < 0).sum())
        p_value = binomtest(more, more + less).pvalue if more + less else 1.0
        return {
            "preferred": proportion(more, len(examples)),
            "difference": mean(difference),
            "sign_p": Figure.of(p_value, np.nan),
        }


@dataclass(frozen=True, kw_only=True)
class Noise(Perturbed):
    """Cost of character or word noise in {"text"}: nats per clean byte of clean and disturbed texts, and their difference.

    A byte of the clean text as the unit charges the model for the additional tokens of noisy text. `field` holds the text;
    `how`: see `lm.evaluation.attacks.perturbations`.
    """

    field: str = "text"

    def measure(self, subject: Subject) -> Figures:
        clean = [example.get(self.field) for example in read_examples(self.path)]
        noisy = self.perturbed(clean, subject.seed)
        nats = np.split(-sentence_logprobs(subject, [*clean, *noisy])[:, 0], 2)
        size = np.array([len(text.encode()) for text in clean])
        rates = {
            "clean": lambda s: divide(s[..., 0], s[..., 2]),
            "disturbed": lambda s: divide(s[..., 1], s[..., 2]),
            "delta": lambda s: divide(s[..., 1] - s[..., 0], s[..., 2]),
        }
        # Both scores of a text are in one row, so that resamples keep the pair together.
        return bootstrap_sums(np.stack([*nats, size], 1), rates, subject.seed)
