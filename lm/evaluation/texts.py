"""The task `texts`: generated texts read by a model that did not write them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm.errors import check
from lm.evaluation.files import read_examples, strings
from lm.evaluation.metrics.diversity import diversity, repetition, self_bleu
from lm.evaluation.metrics.embedding import relevance
from lm.evaluation.metrics.generation import compared
from lm.evaluation.metrics.mauve import mauve
from lm.evaluation.metrics.qa import is_chinese
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide
from lm.evaluation.perplexity import given
from lm.evaluation.subject import Subject
from lm.evaluation.vectors import vectors


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Generated {"prompt", "text"} (and "references"), as lm.generate --output writes them: fluency, diversity, BLEU, MAUVE.

    The evaluated model is the reader, preferably not the writer: `fluency` is its perplexity of the texts given their
    prompts, `relevance` the cosine between its embeddings of prompt and text. Also distinct-n and repetition; with
    references BLEU, chrF and ROUGE; with `human` ({"text"} lines) MAUVE of the reader's embeddings, which needs some
    thousand texts on each side.
    """

    path: str
    human: str = ""

    def measure(self, subject: Subject) -> Figures:
        examples = read_examples(self.path)
        prompts, texts = ([example.get(name) for example in examples] for name in ("prompt", "text"))
        # Chinese has no spaces: its characters stand for words.
        words = [list(text.replace(" ", "")) if any(map(is_chinese, text)) else text.split() for text in texts]
        figures = {**diversity(words, seed=subject.seed), **repetition(words)}
        if len(texts) > 1:
            figures |= self_bleu(words)
        if subject.objective.writes == "text":
            figures |= self.fluency(subject, prompts, texts)
        figures |= self.embedded(subject, prompts, texts)
        if "references" in examples[0].values:
            figures |= compared(texts, [strings(example, "references") for example in examples])
        return figures

    def fluency(self, subject: Subject, prompts: list[str], texts: list[str]) -> Figures:
        pairs = [(p, t) for p, t in zip(prompts, texts) if len(subject.tokenizer.encode(t))]
        check(bool(pairs), f"{self.path}: all texts are empty")
        scored = subject.score("fluency", [given(subject, p, t) for p, t in pairs])
        rows = np.array([[-score.logprobs.sum(dtype=float), len(score.logprobs)] for score in scored])
        return bootstrap_sums(rows, {"fluency": lambda s: np.exp(divide(s[..., 0], s[..., 1]))}, subject.seed)

    def embedded(self, subject: Subject, prompts: list[str], texts: list[str]) -> Figures:
        """Compute relevance to the prompts that are not empty, and MAUVE against human texts."""
        pairs = [(p, t) for p, t in zip(prompts, texts) if p.strip() and t.strip()]
        figures = relevance(*(vectors(subject, side) for side in zip(*pairs))) if pairs else {}
        if self.human:
            human = [example.get("text") for example in read_examples(self.human)]
            written = [text for text in texts if text.strip()]
            figures |= mauve(vectors(subject, written), vectors(subject, human))
        return figures
