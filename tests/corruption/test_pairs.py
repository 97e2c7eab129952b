"""Sentence pairs: halves, labels, whole sentences, lengths."""

import numpy as np
import pytest

from lm.corruption.pairs import chunk, sentence_pair, sentence_starts, shorten, truncate
from lm.data.corpus.store import Tokens
from lm.data.rows.records import Windows

STOP, SEPARATOR, LIMIT = 1, 0, 61
ENDS = np.arange(100_000) == STOP


def stream(documents: int = 300, seed: int = 0) -> Tokens:
    """Documents of sentences of 3 to 20 tokens; token 10 + n is the n-th of the text, so that a token tells its place."""
    rng = np.random.default_rng(seed)
    texts, number = [], 10
    for _ in range(documents):
        sentences = []
        for size in rng.integers(3, 21, rng.integers(1, 30)):
            sentences.append(np.append(np.arange(number, number + size - 1), STOP))
            number += size - 1
        texts.append(np.concatenate(sentences))
    return Tokens.of(texts, SEPARATOR, number)


def pairs(sentence: str, count: int, short_share: float = 0.1, packing: str = "documents"):
    """Draw pairs: (pair, records, A, B)."""
    opened = Windows(length=2 * LIMIT, stride=LIMIT, others=1, apart=True).open(stream(), packing)
    rng = np.random.default_rng(1)
    for _ in range(count):
        record = opened.record(rng, int(rng.integers(opened.size)))
        records = record, record["others"][0]
        starts = tuple(sentence_starts(one, ENDS, 2) for one in records)
        pair = sentence_pair(rng, records, starts, LIMIT, sentence, short_share, SEPARATOR)
        a, b = (records[number]["tokens"][low:high] for number, low, high in (pair.a, pair.b))
        yield pair, records, a, b


def follows(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether b begins where a ends; full stops are no place."""
    return b[b != STOP][0] - a[a != STOP][-1] == 1


def near(found: float, share: float, count: int) -> None:
    assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("sentence", ["nsp", "consecutive"])
def test_halves(sentence):
    """Over a million tokens: a coin, and where there is a single sentence always elsewhere."""
    labels, tokens = [], 0
    for pair, _, a, b in pairs(sentence, 20_000 if sentence == "nsp" else 3000):
        elsewhere = pair.label == 1 if sentence == "nsp" else pair.label == 0
        assert elsewhere == (pair.b[0] == 1)
        labels.append(elsewhere)
        tokens += len(a) + len(b)
    assert tokens > (10**6 if sentence == "nsp" else 10**5)
    assert 0.48 < np.mean(labels) < 0.62  # a bit above a half: single sentences


def test_halves_without_single_sentences():
    """Documents of many short sentences: exactly a coin."""
    texts = [np.tile([5, 6, STOP], 400) for _ in range(20)]
    opened = Windows(length=2 * LIMIT, stride=LIMIT, others=1, apart=True).open(Tokens.of(texts, SEPARATOR, 10))
    for sentence in ("nsp", "sop", "consecutive"):
        rng, labels = np.random.default_rng(2), []
        for _ in range(4000):
            record = opened.record(rng, int(rng.integers(100, 1000)))
            records = record, record["others"][0]
            starts = tuple(sentence_starts(one, ENDS, 2) for one in records)
            labels.append(sentence_pair(rng, records, starts, LIMIT, sentence, 0.0, SEPARATOR).label)
        near(np.mean(labels), 0.5, len(labels))


def test_orders():
    """ALBERT: label 1 where the later sentence comes first, or where a chunk had one sentence and B is from elsewhere."""
    found = []
    for pair, _, a, b in pairs("sop", 4000, short_share=0):
        if pair.b[0] == 1 or pair.a[0] == 1:
            assert pair.label == 1
            continue
        in_order = pair.a[1] < pair.b[1]
        assert pair.label == (not in_order)
        first, second = (a, b) if in_order else (b, a)
        if len(a) + len(b) < LIMIT:  # else the cut may lie between them
            assert follows(first, second)
        found.append(pair.label)
    near(np.mean(found), 0.5, len(found))


def test_spans_are_whole_sentences_of_one_document():
    """Up to the cut to the limit, which takes from the ends only."""
    cut = 0
    for pair, records, a, b in pairs("nsp", 3000, short_share=0):
        assert 0 < len(a) + len(b) <= LIMIT
        for (number, low, high), tokens in ((pair.a, a), (pair.b, b)):
            assert (tokens != SEPARATOR).all()
            assert len(set(records[number]["segments"][low:high].tolist())) == 1
            before = records[number]["tokens"][low - 1] if low else STOP
            if len(a) + len(b) < LIMIT:
                assert before in (STOP, SEPARATOR)
        cut += len(a) + len(b) == LIMIT
        if pair.b[0] == 0 and len(a) + len(b) < LIMIT:
            assert follows(a, b)
    assert cut > 1500


def test_short_targets():
    """A tenth of the rows draws its length from 2 to the limit; sentences are whole, so that lengths pass it."""
    long = np.mean([len(a) + len(b) for _, _, a, b in pairs("nsp", 2000, short_share=0)])
    short = np.mean([len(a) + len(b) for _, _, a, b in pairs("nsp", 2000, short_share=1)])
    assert short < 0.8 * long


def test_documents_are_met_by_their_tokens():
    """The first half's tokens are as likely as each other to choose the document; none is met at its middle only."""
    opened = Windows(length=2 * LIMIT, stride=LIMIT).open(stream())
    rng, opens = np.random.default_rng(3), 0
    for _ in range(2000):
        record = opened.record(rng, int(rng.integers(opened.size)))
        low, ends = chunk(rng, record, sentence_starts(record, ENDS, 2), SEPARATOR)
        assert low < 2 * LIMIT
        assert (np.diff(ends, prepend=low) > 0).all()
        before = record["tokens"][low - 1] if low else None
        opens += before == SEPARATOR
    assert 100 < opens < 1000


def test_truncation_in_words():
    """BERT's loop, token by token, against the sizes written out."""
    rng = np.random.default_rng(4)
    for _ in range(2000):
        sizes, limit = rng.integers(0, 30, 2).tolist(), int(rng.integers(2, 40))
        left = list(sizes)
        while sum(left) > limit:
            left[0 if left[0] > left[1] else 1] -= 1
        spans = truncate(rng, (0, 5, 5 + sizes[0]), (1, 7, 7 + sizes[1]), limit)
        assert [high - low for _, low, high in spans] == left
        assert all(low >= start for (_, low, _), start in zip(spans, (5, 7)))
        assert all(high <= start + size for (_, _, high), start, size in zip(spans, (5, 7), sizes))
    fronts = [shorten(rng, (0, 0, 30), 10)[1] for _ in range(4000)]
    near(np.mean(fronts) / 20, 0.5, 20 * len(fronts))


def test_sentence_starts():
    """After the last of several full stops; or as the data says, when it says anything."""
    tokens = np.array([5, STOP, 6, STOP, STOP, 7, 8])
    record = {"tokens": tokens, "marked": False, "marks": np.zeros(7, np.uint8)}
    assert sentence_starts(record, ENDS, 2).tolist() == [0, 0, 1, 0, 0, 1, 0]
    record |= {"marked": True, "marks": np.array([3, 0, 1, 2, 0, 1, 0], np.uint8)}
    assert sentence_starts(record, ENDS, 2).tolist() == [1, 0, 0, 1, 0, 0, 0]
    record |= {"marks": np.ones(7, np.uint8)}  # words only
    assert sentence_starts(record, ENDS, 2).tolist() == [0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "texts", [[[]], [[], []], [[5]], [[STOP]], [[STOP] * 9, [], [5]], [[5] * 300], [[5, STOP] * 2, []]], ids=str
)
@pytest.mark.parametrize("sentence", ["nsp", "sop"])
@pytest.mark.parametrize("separator", [SEPARATOR, None])
def test_hostile_documents(texts, sentence, separator):
    tokens = Tokens.of([np.array(text, np.int32) for text in texts], separator, 10)
    rng = np.random.default_rng(5)
    for packing in ("documents", "windows"):
        opened = Windows(length=40, stride=20, others=1, apart=True).open(tokens, packing)
        records = [opened.held_out(rng, number) for number in range(opened.once)] if len(tokens) else []
        for record in records:
            both = record, record["others"][0]
            starts = tuple(sentence_starts(one, ENDS, 2) for one in both)
            pair = sentence_pair(rng, both, starts, 20, sentence, 0.5, separator)
            sizes = [high - low for _, low, high in (pair.a, pair.b)]
            assert min(sizes) >= 0
            assert sum(sizes) <= 20


@pytest.mark.parametrize(
    ("documents", "packing"), [(300, "documents"), (20, "documents"), (5, "documents"), (2, "windows"), (1, "documents")]
)
@pytest.mark.parametrize("sentence", ["nsp", "sop"])
def test_elsewhere_is_never_the_same_document(documents, packing, sentence):
    """As google's code has it; B follows A where there is no other document, and a row without B is no pair."""
    tokens = stream(documents)
    opened = Windows(length=2 * LIMIT, stride=LIMIT, others=1, apart=True).open(tokens, packing)
    number = {int(token): i for i, low in enumerate(tokens.starts) for token in tokens.tokens[low : next_start(tokens, i)]}
    rng, elsewhere = np.random.default_rng(1), 0
    for _ in range(1500):
        record = opened.record(rng, int(rng.integers(opened.size)))
        records = record, record["others"][0]
        starts = tuple(sentence_starts(one, ENDS, 2) for one in records)
        pair = sentence_pair(rng, records, starts, LIMIT, sentence, 0.1, SEPARATOR)
        a, b = (
            {number[t] for t in records[k]["tokens"][low:high].tolist() if t not in (STOP, SEPARATOR)}
            for k, low, high in (pair.a, pair.b)
        )
        if pair.b[0] == 1:
            assert pair.label == 1
            assert not a & b
            elsewhere += 1
        elif sentence == "nsp":
            assert pair.label == 0
    assert (elsewhere > (600 if sentence == "nsp" else 5)) == (documents > 1)


def next_start(tokens: Tokens, i: int) -> int:
    return int(tokens.starts[i + 1]) if i + 1 < tokens.documents else len(tokens)
