"""What a fine-tuned network should beat: counts of words, and answers that look at nothing."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from lm.data.examples import Example
from lm.tasks import classification, qa, tagging
from lm.tasks.statistics import flat

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


BASELINES: dict[str, Callable[[Sequence[Example], Sequence[Example]], Found]] = {
    "classify": classify,
    "tag": tag,
    "extract": extract,
}
