"""Permutation language modelling: the release's masks and statistics, rows of two texts, the loss on the device."""

import itertools

import jax
import numpy as np
import pytest

from lm.corruption.permutation import NEVER, choose, elsewhere, join, orders, pair, ranks, shares, spans, trim
from lm.data.corpus.store import Tokens
from lm.data.rows.pipeline import Batches, Evaluation
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError
from lm.models.two_stream import TwoStream, XLNet
from lm.objectives.permuted import Permuted
from lm.sharding import unbox

MODEL = XLNet(context=32, memory=8, width=16, depth=2, heads=2)


@pytest.fixture(scope="module")
def tokenizer():
    return Bytes().build(lambda: iter(())).with_special(Permuted(model=MODEL).special)


@pytest.fixture(scope="module")
def objective(tokenizer):
    return Permuted(model=MODEL, predictions=9).resolve(tokenizer)


@pytest.fixture(scope="module")
def stream(tokenizer):
    """Sentences of random words in some documents."""
    rng = np.random.default_rng(0)

    def sentence():
        return " ".join("abcdefg"[: rng.integers(1, 8)] for _ in range(rng.integers(2, 5))) + "."

    texts = [" ".join(sentence() for _ in range(8)) for _ in range(12)]
    return Tokens.of([tokenizer.encode(text) for text in texts], tokenizer.separator, tokenizer.vocab)


def windows(objective, stream):
    return objective.records.open(stream, "windows", 0)


# -- masks -----------------------------------------------------------------------------------------------------------------

A10_TARGET = np.array([0, 1, 0, 1, 0, 0], bool)
A10_FUNCTIONAL = np.array([0, 0, 0, 0, 1, 1], bool)


def mask(rows: str) -> np.ndarray:
    return np.array([[int(x) for x in row] for row in rows.split()], bool)


def test_worked_example():
    """spec.md, A.10: a b c d <sep> <cls>, targets b and d."""
    rank, reach = ranks(np.array([3, 0, 2, 1, 5, 4]), A10_TARGET, A10_FUNCTIONAL)
    assert rank.tolist() == [-1, 0, -1, 1, 5, 4]
    assert reach.tolist() == [0, 0, 0, 1, 6, 5]
    query = reach[:, None] <= rank[None]
    np.testing.assert_array_equal(query, mask("010111 010111 010111 000111 000000 000010"))
    np.testing.assert_array_equal(query & ~np.eye(6, dtype=bool), mask("010111 000111 010111 000011 000000 000010"))


def test_halves():
    """The first sees nothing of the second, the second all of the first; within each half nothing changes."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        parts, inside = [], []
        for length in (6, 8):
            target = rng.random(length) < rng.random()
            parts.append(ranks(orders(rng, length, 2), target, ~target & (rng.random(length) < 0.3)))
            inside.append(parts[-1][1][:, None] <= parts[-1][0][None])
        rank, reach = join(*parts)
        found = reach[:, None] <= rank[None]
        expected = np.block([[inside[0], np.ones((6, 8), bool)], [np.zeros((8, 6), bool), inside[1]]])
        np.testing.assert_array_equal(found, expected)


def test_orders():
    """Blocks share one permutation, a block's values come after those of the one before; each value is as likely."""
    rng = np.random.default_rng(0)
    drawn = np.stack([orders(rng, 12, 4) for _ in range(4000)]).reshape(4000, 3, 4)
    np.testing.assert_array_equal(drawn[:, 1:] - 4 * np.arange(1, 3)[:, None], drawn[:, :1].repeat(2, 1))
    counts = (drawn[:, 0, :, None] == np.arange(4)).mean(0)
    assert np.abs(counts - 0.25).max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


# -- which tokens ----------------------------------------------------------------------------------------------------------


def test_span_statistics():
    """Over 10^6 tokens: p of n tokens in proportion to 1/n, 6 n tokens of context, a uniform part of them before."""
    rng = np.random.default_rng(0)
    found = [np.array(spans(rng, np.ones(100_000, bool), 20_000, 6, 1, 5)) for _ in range(10)]
    lengths = np.concatenate([x[:, 1] - x[:, 0] for x in found])
    p = (1 / np.arange(1, 6)) / (1 / np.arange(1, 6)).sum()
    np.testing.assert_allclose(shares(5), np.cumsum(p))
    part = np.bincount(lengths, minlength=6)[1:] / len(lengths)
    assert (np.abs(part - p) < 5 * np.sqrt(p * (1 - p) / len(lengths))).all()
    # n in 7 n tokens; the walk stops at most 35 tokens before the end of each text
    assert lengths.sum() / 1_000_000 == pytest.approx(1 / 7, abs=1e-4)
    gaps = np.concatenate([x[1:, 0] - x[:-1, 1] for x in found])  # rest of one context, first part of the next
    mean = 6 * (p * np.arange(1, 6)).sum()
    assert gaps.mean() == pytest.approx(mean, abs=5 * gaps.std() / len(gaps) ** 0.5)
    ones = np.concatenate([x[:, 0] - np.append(0, x[:-1, 1]) for x in found])
    assert ones.min() == 0


def test_first_context():
    """Before the first span lies a uniform part of its 6 n tokens: [0, 6 n)."""
    rng, begins = np.random.default_rng(0), []
    for _ in range(20_000):
        (begin, end), *_ = spans(rng, np.ones(64, bool), 1, 6, 1, 5)
        begins.append(begin)
        assert end - begin == 1
    part = np.bincount(begins, minlength=6) / len(begins)
    assert len(part) == 6
    assert np.abs(part - 1 / 6).max() < 5 * (1 / 6 * 5 / 6 / 20_000) ** 0.5


def test_share_of_targets():
    """Rows of 512: 43 and 42 targets in the halves, 1 token in 6, over 10^6 tokens."""
    rng, total = np.random.default_rng(0), 0
    free = np.ones(256, bool)
    free[[200, 254, 255]] = False
    for _ in range(1954):
        starts = rng.random(256) < 0.7
        first, second = choose(rng, starts, np.ones(256, bool), 43, 6, 1, 5), choose(rng, starts, free, 42, 6, 1, 5)
        assert (first.sum(), second.sum()) == (43, 42)
        assert not second[~free].any()
        total += 85
    assert total / (1954 * 512) == pytest.approx(1 / 6, abs=1e-3)


def test_spans_begin_at_words():
    rng = np.random.default_rng(0)
    for _ in range(200):
        starts = rng.random(256) < 0.4
        found = spans(rng, starts, 43, 6, 1, 5)
        assert all(starts[begin] and begin < end < 256 for begin, end in found)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
        assert sum(end - begin for begin, end in found) <= 43


@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_few_tokens(length):
    rng = np.random.default_rng(0)
    marked = choose(rng, np.ones(length, bool), np.ones(length, bool), 5, 6, 1, 5)
    assert marked.sum() == min(5, length)
    assert choose(rng, np.zeros(length, bool), np.zeros(length, bool), 5, 6, 1, 5).sum() == 0


# -- rows of two texts -----------------------------------------------------------------------------------------------------


def test_trim():
    """Token by token from the longer one, the second where both are as long."""
    for a in range(12):
        for b in range(12):
            for limit in range(12):
                x, y = a, b
                while x + y > limit:
                    x, y = (x - 1, y) if x > y else (x, y - 1)
                assert trim(a, b, limit) == (x, y)


def test_pair():
    borders = np.zeros(40, bool)
    borders[[0, 9, 21, 33, 38]] = True
    rng = np.random.default_rng(0)
    found = [pair(rng, borders, 30) for _ in range(4000)]
    assert {(cut, end) for cut, end, _ in found} == {(9, 33), (21, 33)}  # up to the end of the sentence over the limit
    assert np.mean([label for *_, label in found]) == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)
    assert {pair(rng, np.zeros(40, bool), 30) for _ in range(20)} == {(40, 40, 0)}
    assert pair(rng, np.zeros(0, bool), 30) == (0, 0, 0)


def test_elsewhere():
    borders = np.zeros(40, bool)
    borders[[3, 10, 20, 30]] = True
    assert elsewhere(borders, 12, 5) == (10, 20)
    assert elsewhere(borders, 10, 10) == (10, 20)
    assert elsewhere(borders, 1, 30) == (0, 40)


def test_rows(objective, stream):
    """Context, A <sep> B <sep> <cls>; B continues A or is of the other text; targets are tokens of the row."""
    opened, rng, labels = windows(objective, stream), np.random.default_rng(0), []
    for i in range(300):
        record = opened.record(rng, ~(7 * i) if i % 2 else 7 * i)
        row = objective.corrupt(rng, record)
        tokens, types = row["tokens"], row["types"]
        np.testing.assert_array_equal(tokens[:16], record["tokens"][:16])
        functional = np.flatnonzero(np.isin(tokens, [objective.sep, objective.cls]))
        assert len(functional) == 3
        assert functional[1:].tolist() == [30, 31]
        assert tokens[31] == objective.cls
        cut = functional[0]
        np.testing.assert_array_equal(tokens[16:cut], record["tokens"][16:cut])
        np.testing.assert_array_equal(types, np.repeat([0, 1, 2], [cut + 1, 30 - cut, 1]))
        text = (record if row["pair"] else record["others"][0])["tokens"]
        b = tokens[cut + 1 : 30]
        assert any((text[k : k + len(b)] == b).all() for k in range(len(text) - len(b) + 1))
        places = row["places"]
        assert (places < 16).sum() == 5
        assert len(np.unique(places)) == 9
        assert not np.isin(places, functional).any()
        np.testing.assert_array_equal(row["targets"], tokens[places])
        assert (row["weights"] == 1).all()
        assert row["backward"] == i % 2
        np.testing.assert_array_equal(np.flatnonzero(row["rank"] == row["reach"]), places)
        labels.append(row["pair"])
    assert 0.3 < np.mean(labels) < 0.6  # no border in reach makes some of the pairs random


def test_borders_are_those_of_sentences(objective, stream):
    """In a row that is read from right to left a "sentence" begins with its full stop."""
    opened, rng = windows(objective, stream), np.random.default_rng(0)
    for at in range(0, 400, 13):
        tokens, borders = objective.read(opened.record(rng, at))
        back, back_borders = objective.read(opened.record(rng, ~at))
        np.testing.assert_array_equal(tokens[:, ::-1], back)
        assert borders.any()
        np.testing.assert_array_equal(borders[1:], back_borders[:0:-1])
        assert all(chr(c) in ".\n" or c == objective.separator for c in back[0][1:][back_borders[1:]])


def test_marks_of_the_data_are_used(objective, stream):
    record = dict(windows(objective, stream).record(np.random.default_rng(0), 0))
    length = len(record["tokens"])
    marks = np.where(np.arange(length) % 7 == 0, 3, 0).astype(np.uint8)
    tokens, borders = objective.read(record | {"marked": True, "marks": marks})
    np.testing.assert_array_equal(np.flatnonzero(tokens[1]), np.arange(0, length, 7))
    np.testing.assert_array_equal(np.flatnonzero(borders), np.arange(0, length, 7))


@pytest.mark.parametrize("real", [0, 1, 2, 15, 16, 17, 20, 30])
def test_short_rows(objective, stream, real):
    """The end of held-out text, and worse: padding is neither seen nor asked for."""
    rng = np.random.default_rng(0)
    record = dict(windows(objective, stream).record(rng, 0))
    for name in ("tokens", "segments"):
        record[name] = np.where(np.arange(len(record[name])) < real, record[name], 0)
    row = objective.corrupt(rng, record)
    padding = row["rank"] == NEVER
    assert padding[:16].sum() == max(0, 16 - real)
    assert row["weights"][: (row["weights"] > 0).sum()].all()
    asked = row["places"][row["weights"] > 0]
    assert not padding[asked].any()
    assert len(asked) == min(5, real) + min(4, (~padding[16:]).sum() - 3)


def test_reading_order(objective, stream):
    """Even rows go on to the right, odd rows to the left, each from where the batch before stopped."""
    batches = Batches(((1.0, stream),), objective.records, objective.corrupt, 4, 0, packing="windows")
    found = [batches[step] for step in range(5)]
    assert [b["backward"].tolist() for b in found] == [[0, 1, 0, 1]] * 5
    ring = stream.tokens[:-1].astype(np.int32)
    for row, begin in enumerate((0, len(ring) // 2, len(ring) // 2, len(ring))):
        read = np.concatenate([b["tokens"][row, :16] for b in found])
        expected = np.roll(ring, -begin)[:: -1 if row % 2 else 1]
        np.testing.assert_array_equal(read, expected[:80])
    with pytest.raises(UserError, match="batch=3 must be even"):
        _ = Batches(((1.0, stream),), objective.records, objective.corrupt, 3, 0)[0]


def test_choices(tokenizer, objective):
    assert objective.model.vocab == tokenizer.vocab
    assert objective.resolve(tokenizer) == objective
    assert tokenizer.pieces([objective.sep, objective.cls]) == ["<sep>", "<cls>"]
    published = Permuted(model=XLNet())
    assert (published.halves, published.order_size, published.count) == ((256, 256), 256, 85)
    assert published.records.stride == 256
    with pytest.raises(UserError, match="need 5"):
        Permuted(model=MODEL, reuse=29)
    with pytest.raises(UserError, match="must divide both halves"):
        Permuted(model=MODEL, reuse=12)
    with pytest.raises(UserError, match="predictions=30"):
        Permuted(model=MODEL, predictions=30)


def test_show(objective, stream, tokenizer):
    batch = Batches(((1.0, stream),), objective.records, objective.corrupt, 2, 0, packing="windows")[0]
    forth, back = ({name: x[row] for name, x in batch.items()} for row in range(2))
    text = objective.show(tokenizer, forth, {"guess": forth["targets"]})
    assert tokenizer.decode(forth["tokens"][:8]) in text
    assert text.count("[?]") == 9
    assert "(100% right)" in text
    assert "from right to left" in objective.show(tokenizer, back)
    assert objective.show(tokenizer, {name: np.zeros_like(x) for name, x in back.items()})


# -- the loss --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch(objective, stream):
    return Batches(((1.0, stream),), objective.records, objective.corrupt, 8, 0, packing="windows")[0]


@pytest.fixture(scope="module")
def params(objective, batch):
    drawn = unbox(jax.jit(objective.init)(jax.random.key(0), batch))
    leaves, tree = jax.tree.flatten(drawn)
    rng = np.random.default_rng(0)
    return tree.unflatten([np.float32(x + 0.1 * rng.standard_normal(x.shape)) for x in leaves])


@pytest.fixture(scope="module")
def loss(objective):
    return jax.jit(lambda params, batch, memory: objective.loss(params, batch, memory, None))


def test_loss(objective, batch, params, loss):
    """The weighted sum over predictions of -log softmax at the query states."""
    weights = np.random.default_rng(0).random(batch["weights"].shape).astype(np.float32)
    memory = objective.initial_memory(8)
    assert memory.shape == (8, 2, 8, 16)
    sums, later = loss(params, batch | {"weights": weights}, memory)
    g_BPD, head, expected = jax.jit(objective.states)(params, batch, memory, None)
    scores = np.asarray(g_BPD, np.float64) @ np.asarray(head.table_VD, np.float64).T + np.asarray(head.bias_V)
    log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    assert float(sums["loss"][0]) == pytest.approx((weights * nll).sum(), rel=1e-5)
    assert float(sums["accuracy"][0]) == pytest.approx((weights * (scores.argmax(-1) == batch["targets"])).sum(), rel=1e-5)
    assert float(sums["loss"][1]) == pytest.approx(weights.sum())
    assert float(objective.weights(batch)["loss"]) == batch["weights"].sum()
    np.testing.assert_array_equal(later, expected)
    assert jax.eval_shape(objective.predict, params, batch)["guess"].shape == batch["targets"].shape


def test_held_out_text(objective, stream, params, loss):
    """Rows of zeros that fill the last batch up give finite numbers and no weight."""
    batches = Evaluation(stream, objective.records, objective.corrupt, 8, packing="windows")
    last = batches[len(batches) - 1]
    assert not last["backward"].any()
    empty = {name: np.zeros_like(x) for name, x in last.items()}
    sums, _ = loss(params, empty, objective.initial_memory(8))
    assert [float(x) for x in sums["loss"]] == [0, 0]


def test_a_prediction_does_not_see_itself(objective, batch, params):
    """Another token at a place changes nothing of what is predicted there."""
    variables = {"params": params}

    @jax.jit
    def states(tokens):
        kinds = {f"{name}_BT": batch[name] for name in ("types", "rank", "reach")}
        return TwoStream(objective.model).apply(variables, tokens, places_BP=batch["places"], **kinds)[1]

    changed = batch["tokens"].copy()
    changed[np.arange(8), batch["places"][:, 3]] = 77
    before, after = states(batch["tokens"]), states(changed)
    np.testing.assert_array_equal(before[:, 3], after[:, 3])
    assert (np.asarray(before) != np.asarray(after)).any()
