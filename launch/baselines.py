"""What a fine-tuned network should beat: counts of words, and answers that look at nothing."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from lm.data.tokenizer.tokenizer import BytePair
from lm.data.types import Example
from lm.evaluation import predictions
from lm.evaluation.kneser_ney import KneserNey, Stream
from lm.evaluation.metrics import classification, qa, tagging
from lm.evaluation.metrics.statistics import flat

Found = dict[str, dict[str, float | None]]


def classify(train: Sequence[Example], held_out: Sequence[Example]) -> Found:
    """Logistic regression on TF-IDF of words and pairs of words; the commonest class."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=200_000)
    x = words.fit_transform([one.get("text") for one in train])
    labels = [one.get("label") for one in train]
    model = LogisticRegression(C=10.0, max_iter=1000).fit(x, labels)
    truth = [one.get("label") for one in held_out]
    guess = model.predict(words.transform([one.get("text") for one in held_out])).tolist()
    common = Counter(labels).most_common(1)[0][0]
    return {
        "TF-IDF + logistic regression": flat(classification.scores(truth, guess)),
        "commonest class": flat(classification.scores(truth, [common] * len(truth))),
    }


def tag(train: Sequence[Example], held_out: Sequence[Example]) -> Found:
    """The commonest tag of each word, O for words that training lacks."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for one in train:
        for word, name in zip(one.get("words", list), one.get("tags", list)):
            counts[word][name] += 1
    usual = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    guess = [[usual.get(word, "O") for word in one.get("words", list)] for one in held_out]
    return {"commonest tag of the word": flat(tagging.entities([one.get("tags", list) for one in held_out], guess))}


def extract(train: Sequence[Example], held_out: Sequence[Example]) -> Found:
    """The paragraph's first sentence; the sentence that shares most words (characters of Chinese) with the question."""
    cut = [[part for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", one.get("context")) if part] for one in held_out]
    golds = [one.get("answers", list) for one in held_out]
    text = "".join(one.get("context") for one in held_out)
    rule = qa.CMRC if 3 * sum(map(qa.is_chinese, text)) > len(text) else qa.SQUAD
    asked = [set(qa.segments(one.get("question"))) for one in held_out]
    nearest = [max(parts, key=lambda part: len(words & set(qa.segments(part)))) for words, parts in zip(asked, cut)]
    return {
        "first sentence": flat(qa.answers([parts[0] for parts in cut], golds, rule)),
        "nearest sentence": flat(qa.answers(nearest, golds, rule)),
    }


def summarise(train: Sequence[Example], held_out: Sequence[Example]) -> Found:
    """The first sentence of the text (lead-1); the first line of the training text that is most like it."""
    first = [re.split(r"(?<=[.!?])\s", one.get("source"))[0] for one in held_out]
    found = {"first sentence": written(first, held_out), "nearest text's": neighbours(train, held_out)}
    return found | n_grams(train, held_out)


def translate(train: Sequence[Example], held_out: Sequence[Example]) -> Found:
    """The source as it is; the translation of the training source that is most like it."""
    copied = [one.get("source") for one in held_out]
    return {"copy": written(copied, held_out), "nearest source's": neighbours(train, held_out)} | n_grams(train, held_out)


def reply(train: Sequence[Example], held_out: Sequence[Example]) -> Found:
    """What was said where the training turns are most like these; the commonest reply."""
    common = Counter(one.get("target") for one in train).most_common(1)[0][0]
    found = {"nearest context's": neighbours(train, held_out), "commonest": written([common] * len(held_out), held_out)}
    return found | n_grams(train, held_out)


def written(texts: Sequence[str], held_out: Sequence[Example]) -> dict[str, float | None]:
    """Measure texts as those of a network are."""
    pairs = zip(texts, held_out)
    return flat(predictions.measure_texts(None, [{"guess": t, "gold": [one.get("target")]} for t, one in pairs], 0))


def neighbours(train: Sequence[Example], held_out: Sequence[Example]) -> dict[str, float | None]:
    """Give each the target of the training source with the nearest TF-IDF of letters (3 to 5)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    def sources(side):
        return [" ".join(one.values.get("context", [])) or one.get("source") for one in side]

    table = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2, max_features=200_000)
    known, asked = table.fit_transform(sources(train)), table.transform(sources(held_out))
    nearest = np.concatenate([(asked[k : k + 256] @ known.T).toarray().argmax(1) for k in range(0, asked.shape[0], 256)])
    return written([train[k].get("target") for k in nearest], held_out)


def n_grams(train: Sequence[Example], held_out: Sequence[Example], order: int = 5) -> Found:
    """Bits a byte of the targets by modified Kneser-Ney 5-grams of them alone, over a BPE of 8,192."""
    tokenizer = BytePair(vocab=8192).build(lambda: (one.get("target") for one in train))

    def stream(side):
        pieces = [np.array([tokenizer.separator, *tokenizer.encode(one.get("target")), tokenizer.separator]) for one in side]
        return Stream(np.concatenate(pieces), np.concatenate([np.arange(len(piece)) for piece in pieces]))

    shares = KneserNey.fit(stream(train), order, tokenizer.vocab).probabilities(stream(held_out))
    size = sum(len(one.get("target").encode()) for one in held_out)
    return {"5-grams": {"bits_per_byte": float(-np.log2(shares).sum() / size)}}


BASELINES: dict[str, Callable[[Sequence[Example], Sequence[Example]], Found]] = {
    "classify": classify,
    "tag": tag,
    "extract": extract,
    "summarise": summarise,
    "translate": translate,
    "reply": reply,
}
