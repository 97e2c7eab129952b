"""Generated texts under a model that did not write them, and similarity of meaning: what needs vectors and other texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm.errors import check
from lm.evaluation.files import items
from lm.evaluation.metrics.diversity import diversity, repetition, self_bleu
from lm.evaluation.metrics.embedding import alignment, relevance, similarity, uniformity
from lm.evaluation.metrics.generation import compared
from lm.evaluation.metrics.mauve import mauve
from lm.evaluation.metrics.qa import is_chinese
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide
from lm.evaluation.perplexity import given
from lm.evaluation.subject import Subject
from lm.evaluation.vectors import vectors


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What somebody wrote, as the lines of `lm.generate --output`: {"prompt", "text"}, and "references" where there are.

    The model under test is a reader here, best not the writer: `fluency` is its perplexity of the texts given their
    prompts, `relevance` the cosine of its vectors of prompt and text. Besides: distinct-n and repetition, with references
    BLEU, chrF and ROUGE, with `human` (JSON lines with "text") MAUVE of the reader's vectors, which asks for some thousand
    texts on each side.
    """

    path: str
    human: str = ""

    def measure(self, subject: Subject) -> Figures:
        found = items(self.path)
        prompts, texts = [item.text("prompt") for item in found], [item.text("text") for item in found]
        words = [list(text.replace(" ", "")) if chinese(text) else text.split() for text in texts]
        figures = {**diversity(words, seed=subject.seed), **repetition(words)}
        if len(texts) > 1:
            figures |= self_bleu(words)
        if subject.objective.writes == "text":
            figures |= self.fluency(subject, prompts, texts)
        figures |= self.meant(subject, prompts, texts)
        if "references" in found[0].values:
            figures |= compared(texts, [item.texts("references") for item in found])
        return figures

    def fluency(self, subject: Subject, prompts: list[str], texts: list[str]) -> Figures:
        asked = [(p, t) for p, t in zip(prompts, texts) if len(subject.tokenizer.encode(t))]
        check(bool(asked), f"{self.path}: all texts are empty")
        scored = subject.score("fluency", [given(subject, p, t) for p, t in asked])
        rows = np.array([[-one.logprobs.sum(dtype=float), len(one.logprobs)] for one in scored])
        return bootstrap_sums(rows, {"fluency": lambda s: np.exp(divide(s[..., 0], s[..., 1]))}, subject.seed)

    def meant(self, subject: Subject, prompts: list[str], texts: list[str]) -> Figures:
        """Relevance to the prompts that there are, and MAUVE against human texts."""
        both = [(p, t) for p, t in zip(prompts, texts) if p.strip() and t.strip()]
        found: Figures = {}
        if both:
            first, second = (vectors(subject, side) for side in zip(*both))
            found |= relevance(first, second)
        if self.human:
            theirs = [item.text("text") for item in items(self.human)]
            ours = [text for text in texts if text.strip()]
            found |= mauve(vectors(subject, ours), vectors(subject, theirs))
        return found


def chinese(text: str) -> bool:
    return any(map(is_chinese, text))


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """STS: JSON lines {"first", "second", "score"} (and "subset"): rank correlation of the vectors' cosines with people's
    scores, in the "all" setting; with alignment (of the pairs scored in the top fifth) and uniformity.
    """

    path: str

    def measure(self, subject: Subject) -> Figures:
        found = items(self.path)
        gold = [item.get("score") for item in found]
        wrong = [item.where for item, value in zip(found, gold) if not isinstance(value, int | float)]
        check(not wrong, f"{wrong[0] if wrong else ''}: 'score' must be a number")
        both = vectors(subject, [item.text(name) for name in ("first", "second") for item in found])
        first, second = np.split(both, 2)
        subsets = [item.text("subset") for item in found] if "subset" in found[0].values else None
        figures = similarity(first, second, gold, subsets, subject.seed)
        best = np.asarray(gold, float) >= min(gold) + 0.8 * (max(gold) - min(gold))
        figures |= alignment(first[best], second[best])
        return figures | (uniformity(both) if len(both) > 2 else {})
