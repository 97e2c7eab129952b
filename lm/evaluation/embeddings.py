"""Tasks on text embeddings: semantic similarity, retrieval, and association tests for bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm.errors import check
from lm.evaluation.files import read_examples, strings
from lm.evaluation.metrics.embedding import alignment, retrieval, similarity, uniformity, weat
from lm.evaluation.metrics.statistics import Figures
from lm.evaluation.subject import Subject
from lm.evaluation.vectors import vectors


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Semantic textual similarity of {"first", "second", "score"} (and "subset"): rank correlation of cosines with scores.

    Correlations are over all pairs together, the "all" setting; also alignment (of the pairs in the top fifth of the range
    of scores) and uniformity.
    """

    path: str

    def measure(self, subject: Subject) -> Figures:
        examples = read_examples(self.path)
        gold = [example.get("score", (int, float)) for example in examples]
        texts = [example.get(name) for name in ("first", "second") for example in examples]
        subsets = [example.get("subset") for example in examples] if "subset" in examples[0].values else None
        both = vectors(subject, texts)
        first, second = np.split(both, 2)
        figures = similarity(first, second, gold, subsets, subject.seed)
        positive = np.asarray(gold, float) >= min(gold) + 0.8 * (max(gold) - min(gold))
        figures |= alignment(first[positive], second[positive])
        return figures | (uniformity(both) if len(both) > 2 else {})


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Dense retrieval of {"query", "documents": [relevant texts]} by cosine: accuracy@1, @5, @10 and mean reciprocal rank.

    Candidates are the documents of all lines and those of `pool`, {"text"} lines that are relevant to no query.
    """

    path: str
    pool: str = ""

    def measure(self, subject: Subject) -> Figures:
        examples = read_examples(self.path)
        queries, relevant = [one.get("query") for one in examples], [strings(one, "documents") for one in examples]
        texts = [text for documents in relevant for text in documents]
        texts += [one.get("text") for one in read_examples(self.pool)] if self.pool else []
        # A document that several queries name is one candidate: its copies would push each other down.
        index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        embedded = vectors(subject, [*queries, *index])
        rows = [[index[text] for text in documents] for documents in relevant]
        return retrieval(embedded[: len(queries)], embedded[len(queries) :], rows)


@dataclass(frozen=True, kw_only=True)
class Association:
    """Association test of {"text", "set"}, targets x and y with attributes a and b: effect size `weat` and its p.

    Of words WEAT (Caliskan et al. 2017), of sentences SEAT (May et al. 2019).
    """

    path: str

    def measure(self, subject: Subject) -> Figures:
        examples = read_examples(self.path)
        sets = np.array([example.get("set") for example in examples])
        for example, name in zip(examples, sets):
            check(name in ("x", "y", "a", "b"), f"{example.where}: 'set' must be x, y, a or b, not {name!r}")
        lacking = [name for name in ("x", "y", "a", "b") if name not in sets]
        check(not lacking, f"{self.path}: no text of the set {', '.join(lacking)}")
        embedded = vectors(subject, [example.get("text") for example in examples])
        x, y, a, b = (embedded[sets == name] for name in ("x", "y", "a", "b"))
        return weat(x, y, a, b, subject.seed)
