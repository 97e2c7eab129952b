"""Kneser-Ney against the textbook's formulas written out with dictionaries, and on exactly the Transformer's targets."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from lm.data.corpus.store import Tokens
from lm.data.rows.pipeline import Evaluation
from lm.evaluation.kneser_ney import KneserNey, Stream, discounts, evaluate
from lm.objectives.causal import Causal
from tests.models.reference import tiny
from tests.processes import command

VOCAB, SEPARATOR = 12, 11


def documents(count: int, seed: int = 0, longest: int = 15) -> list[np.ndarray]:
    """Text with some structure: each token tends to be near twice the one before it."""
    rng = np.random.default_rng(seed)
    found = []
    for size in rng.integers(0, longest, count):
        ids = [int(rng.integers(10))]
        for _ in range(size):
            ids.append(int(2 * ids[-1] + rng.geometric(0.5)) % 10)
        found.append(np.array(ids[:size], np.int64))
    return found


class Textbook:
    """Chen & Goodman's formulas, one n-gram at a time."""

    def __init__(self, texts, order: int, separator: int | None):
        self.order, self.counts = order, [Counter() for _ in range(order + 1)]
        left = defaultdict(set)
        for number, text in enumerate(texts):
            row = [*text] if separator is None else [separator, *text, separator]
            for i in range(1, len(row)):
                for n in range(1, min(order, i + 1) + 1):
                    gram = tuple(row[i - n + 1 : i + 1])
                    self.counts[n][gram] += 1
                    before = row[i - n] if i - n >= 0 else ("beginning", number)
                    left[gram].add(before)
        for n in range(1, order):
            self.counts[n] = Counter({gram: len(left[gram]) for gram in self.counts[n]})
        self.following = [defaultdict(dict) for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram, count in self.counts[n].items():
                self.following[n][gram[:-1]][gram[-1]] = count

    def discount(self, n: int, count: int) -> float:
        tally = Counter(self.counts[n].values())
        n1, n2, n3, n4 = (tally[k] for k in (1, 2, 3, 4))
        if n1 and n2 and n3:
            y = n1 / (n1 + 2 * n2)
            formula = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if all(0 < d <= k for k, d in enumerate(formula, 1)):
                return formula[min(count, 3) - 1]
        return min(count, 3) / 2

    def probability(self, context: tuple, word: int) -> float:
        n = len(context) + 1
        lower = self.probability(context[1:], word) if n > 1 else 1 / VOCAB
        following = self.following[n].get(context)
        if not following:
            return lower
        total = sum(following.values())
        count = following.get(word, 0)
        own = max(count - self.discount(n, count), 0) / total if count else 0
        return own + sum(self.discount(n, c) for c in following.values()) / total * lower

    def stream(self, texts, separator: int | None) -> list[float]:
        found = []
        for text in texts:
            row = [*text] if separator is None else [separator, *text, separator]
            for i in range(1, len(row)):
                found.append(self.probability(tuple(row[max(0, i - self.order + 1) : i]), row[i]))
        return found


def split(texts, separator: int | None = SEPARATOR) -> Stream:
    return Stream.of(Tokens.of(texts, separator, VOCAB))


@pytest.mark.parametrize("separator", [SEPARATOR, None])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [3, 200])
def test_equals_the_textbook(order, separator, count):
    train, held_out = documents(count), [*documents(20, 1), np.array([10, 3, 10])]  # 10: never seen
    found = KneserNey.fit(split(train, separator), order, VOCAB).probabilities(split(held_out, separator))
    expected = Textbook(train, order, separator).stream(held_out, separator)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3, 6])
def test_sums_to_one(order):
    """After seen, half-seen and unseen contexts, over the whole vocabulary."""
    model = KneserNey.fit(split(documents(50)), order, VOCAB)
    for context in ([], [3], [3, 7, 5, 1], [10], [4, 10], [10, 4, 9, 8]):
        total = 0.0
        for word in range(VOCAB):
            text = np.array([SEPARATOR, *context, word])
            total += model.probabilities(Stream(text, np.arange(len(text))))[-1]
        assert total == pytest.approx(1, abs=1e-12)


def test_discounts_of_counts():
    """Equation 26 by hand: n1..n4 = 6, 3, 2, 1 give Y = 1/2."""
    counts = np.array([1] * 6 + [2] * 3 + [3] * 2 + [4] + [9] * 5)
    np.testing.assert_allclose(discounts(counts), [0, 1 / 2, 1, 2])
    np.testing.assert_array_equal(discounts(np.array([7, 8, 900])), [0, 0.5, 1, 1.5])
    np.testing.assert_array_equal(discounts(np.zeros(0, np.int64)), [0, 0.5, 1, 1.5])


def test_a_fitted_text_is_told_from_noise():
    train, held_out = documents(2000), documents(100, 1)
    losses = [-np.log(KneserNey.fit(split(train), n, VOCAB).probabilities(split(held_out))).mean() for n in (1, 2, 3)]
    assert losses[1] < losses[0] - 0.3
    assert losses[2] == pytest.approx(losses[1], abs=0.05)  # the text has no longer memory


def test_nothing_to_learn_from_is_uniform():
    nothing = Stream.of(Tokens.of([], SEPARATOR, VOCAB))
    found = KneserNey.fit(nothing, 3, VOCAB).probabilities(split(documents(5)))
    np.testing.assert_allclose(found, 1 / VOCAB)
    assert len(KneserNey.fit(split(documents(5)), 3, VOCAB).probabilities(nothing)) == 0
    empty = KneserNey.fit(Stream.of(Tokens.of([np.zeros(0, int)] * 3, None, VOCAB)), 3, VOCAB)
    np.testing.assert_allclose(empty.probabilities(split(documents(5))), 1 / VOCAB)


@pytest.mark.parametrize("separator", [SEPARATOR, None])
@pytest.mark.parametrize("packing", ["documents", "windows"])
def test_targets_are_the_transformers(separator, packing):
    """The same tokens in the same order as the causal objective's rows of weight 1, with the same histories."""
    tokens = Tokens.of(documents(30), separator, VOCAB)
    objective = Causal(model=tiny(context=8), separator=separator)
    rows = list(Evaluation(tokens, objective.records, objective.corrupt, 4, packing))
    expected = np.concatenate([row["targets"][row["weights"] > 0] for row in rows])
    stream = Stream.of(tokens, packing)
    np.testing.assert_array_equal(stream.tokens[stream.targets()], expected)
    first = [stream.tokens[i - stream.history[i] : i] for i in stream.targets() if stream.history[i] <= 2]
    starts = {tuple(ids[:1]) for ids in first}
    if packing == "documents" and separator is not None:
        assert starts == {(SEPARATOR,)}


def test_streams_join_without_touching():
    parts = [split(documents(9, seed)) for seed in (0, 1)]
    both = Stream.join(parts)
    one = KneserNey.fit(both, 3, VOCAB)
    order = KneserNey.fit(Stream.join(parts[::-1]), 3, VOCAB)
    for a, b in zip(one.levels, order.levels):
        np.testing.assert_allclose(sorted(a.own), sorted(b.own))
    assert len(both.targets()) == sum(len(part.targets()) for part in parts)


def test_large_vocabularies_of_high_order_stay_exact():
    """Ids of contexts, not packed tokens: five tokens of 2**18 would not fit 64 bits."""
    rng = np.random.default_rng(0)
    vocab = 1 << 18
    text = rng.integers(vocab - 40, vocab, 20_000)
    tokens = Tokens.of([text], None, vocab)
    model = KneserNey.fit(Stream.of(tokens), 7, vocab)
    for n, level in enumerate(model.levels[1:], 2):
        seen = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
        assert len(level.keys) == len(seen)


def test_figures_are_those_of_a_network():
    tokens = Tokens.of(documents(30), SEPARATOR, VOCAB, raw_bytes=500)
    found = evaluate(KneserNey.fit(Stream.of(tokens), 1, VOCAB), tokens)
    bits = found["kneser_ney/loss"] / np.log(2) * (len(tokens) - 1) / 500
    assert found["kneser_ney/bits_per_byte"] == pytest.approx(bits)
    assert found["kneser_ney/perplexity"] == pytest.approx(np.exp(found["kneser_ney/loss"]))


def test_the_command_prints_a_table(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log\n" * 50)
    line = ["lm.evaluation.kneser_ney", f"--config=tests/configs/tiny.py:text={text}"]
    done = command(*line, "--order=2", "--order=4")
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["2", "4"]
    assert float(rows[1][4]) < float(rows[0][4])
    mistaken = command(*line, "--order=0")
    assert mistaken.returncode == 2
    assert "--order=0" in mistaken.stderr
