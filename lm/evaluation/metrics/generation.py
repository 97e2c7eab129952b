"""Generated text against references: BLEU and chrF by sacrebleu, ROUGE by rouge_score, exact match."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lm.errors import UserError, check, unknown
from lm.evaluation.metrics.qa import is_chinese
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, mean, proportion, same_length

References = Sequence[Sequence[str]]  # any number of references for each text


def _checked(texts: Sequence[str], references: References) -> None:
    same_length(texts=texts, references=references)
    wrong = next((i for i, r in enumerate(references) if isinstance(r, str) or not len(r)), None)
    check(wrong is None, f"text {wrong}: its references must be a list of at least one text")


def bleu(
    texts: Sequence[str], references: References, tokenizer: str = "13a", seed: int = 0, replicates: int = 1000
) -> tuple[Figures, str]:
    """Compute corpus `bleu` and mean sentence BLEU, `bleu_sentence`, in points of 100; return sacrebleu's signature, too.

    Post 2018. `tokenizer` is one of sacrebleu's: "13a", "intl", "char", and "zh" for Chinese, which has no spaces.
    """
    from sacrebleu.metrics import BLEU

    valid = sorted(str(name) for name in BLEU.TOKENIZERS)
    if tokenizer not in valid:
        raise unknown("BLEU tokenizer", tokenizer, valid)
    metric, single = BLEU(tokenize=tokenizer), BLEU(tokenize=tokenizer, effective_order=True)
    corpus = _corpus("bleu", metric, texts, references, seed, replicates)
    sentences = [single.sentence_score(text, list(r)).score for text, r in zip(texts, references)]
    return {**corpus, "bleu_sentence": mean(sentences)}, str(metric.get_signature())


def chrf(
    texts: Sequence[str], references: References, words: int = 0, seed: int = 0, replicates: int = 1000
) -> tuple[Figures, str]:
    """Compute corpus `chrf` (Popović 2015) in points of 100, and sacrebleu's signature; `chrf++` with words=2."""
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=words)
    return _corpus("chrf" + "+" * words, metric, texts, references, seed, replicates), str(metric.get_signature())


def _corpus(name: str, metric: Any, texts: Sequence[str], references: References, seed: int, replicates: int) -> Figures:
    """Bootstrap a sacrebleu metric over sentences: BLEU and chrF are functions of sums of matches and lengths."""
    _checked(texts, references)
    most = max(map(len, references))
    # sacrebleu takes the k-th reference of every text as one stream, with None for a text that has fewer.
    streams = [[r[k] if k < len(r) else None for r in references] for k in range(most)]
    rows = np.array(metric._extract_corpus_statistics(texts, streams))  # as sacrebleu's own significance tests do

    def formula(sums: np.ndarray) -> np.ndarray:
        # Sums of counts come back from a product of float matrices.
        whole = np.rint(sums).astype(int).reshape(-1, rows.shape[1]).tolist()
        return np.array([metric._compute_score_from_stats(s).score for s in whole]).reshape(sums.shape[:-1])

    return bootstrap_sums(rows, {name: formula}, seed, replicates)


class Characters:
    """Tokenizer for rouge_score of every script: Chinese characters, otherwise words of letters or digits.

    rouge_score's own keeps a-z and 0-9 only, which leaves a Chinese text empty.
    """

    def tokenize(self, text: str) -> list[str]:
        """Split a text into lower-case tokens."""
        spaced = "".join(f" {c} " if is_chinese(c) else c for c in text.lower())
        return re.findall(r"[^\W_]+", spaced)


ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(
    texts: Sequence[str],
    references: References,
    kinds: Sequence[str] = ROUGE,
    stemmer: bool = False,
    tokenizer: object | None = None,
) -> Figures:
    """Compute ROUGE (Lin 2004): F1 as `rouge1` ..., with /precision and /recall, as fractions of 1.

    Means over texts, each with its reference of the highest F1. `rougeLsum` treats lines as sentences, so summaries keep
    their line ends. `stemmer` is Porter's. Text other than English needs `tokenizer=Characters()`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _checked(texts, references)
    wrong = next((kind for kind in kinds if not re.fullmatch(r"rouge([1-9]|L|Lsum)", kind)), None)
    if wrong is not None:
        raise unknown("ROUGE", wrong, ROUGE)
    _readable(references, tokenizer)
    scorer = RougeScorer(list(kinds), use_stemmer=stemmer, tokenizer=tokenizer)
    scored = [scorer.score_multi(list(r), text) for text, r in zip(texts, references)]
    parts = {"": "fmeasure", "/precision": "precision", "/recall": "recall"}
    return {f"{kind}{name}": mean([getattr(s[kind], part) for s in scored]) for kind in kinds for name, part in parts.items()}


def _readable(references: References, tokenizer: object | None) -> None:
    """Raise UserError where the English tokenizer would leave most references empty and score them 0."""
    if tokenizer is not None:
        return
    every = [r for some in references for r in some if any(c.isalnum() for c in r)]
    lost = [r for r in every if not re.search(r"[a-z0-9]", r.lower())]
    if 2 * len(lost) > len(every):
        where = f"nothing in {len(lost)} of {len(every)} references, as in {lost[0][:20]!r}"
        raise UserError(f"rouge_score reads a-z and 0-9 only and finds {where}: use tokenizer=Characters()")


def compared(texts: Sequence[str], references: References, seed: int = 0) -> Figures:
    """Compute BLEU, chrF and ROUGE, by characters if any reference is Chinese."""
    chinese = any(is_chinese(c) for some in references for text in some for c in text)
    scores = bleu(texts, references, "zh" if chinese else "13a", seed)[0] | chrf(texts, references, seed=seed)[0]
    return scores | rouge(texts, references, tokenizer=Characters() if chinese else None)


def exact_match(texts: Sequence[str], references: References, normalise: Callable[[str], str] = str.strip) -> Figures:
    """Compute the share of texts equal to one of their references after `normalise`."""
    _checked(texts, references)
    right = sum(normalise(text) in {normalise(r) for r in some} for text, some in zip(texts, references))
    return {"exact_match": proportion(right, len(texts))}
