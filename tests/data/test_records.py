"""Records: other windows, static copies, lanes, marks, and whole documents packed by their fields."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.corpus.store import Tokens
from lm.data.rows.packing import next_fit, ring
from lm.data.rows.pipeline import Batches, Evaluation
from lm.data.rows.records import Documents, Windows
from lm.errors import UserError
from tests.data.test_pipeline import same, stream


def others(rng, record):
    rows = np.stack([other["tokens"] for other in record["others"]])
    return {"tokens": record["tokens"], "others": rows, "draw": rng.random(2)}


def drawn(rng, record):
    return {"tokens": record["tokens"], "draw": rng.random(2)}


def train(tokens, records, corrupt, **changes):
    return Batches(((1.0, tokens),), records, corrupt, **({"batch": 4, "seed": 3} | changes))


def test_windows_are_those_of_the_first_release():
    """Runs in the log must repeat: these rows were printed before records had a class of their own."""
    batches = train(stream(9), Windows(length=5, stride=4), drawn, batch=3)
    assert batches[0]["tokens"].tolist() == [[73, 74, 75, 76, 77], [13, 14, 15, 16, 17], [55, 56, 57, 58, 59]]
    assert batches[40]["tokens"].tolist() == [[73, 74, 75, 76, 77], [1, 83, 1, 84, 85], [46, 47, 48, 49, 50]]


def test_every_key_is_there():
    seen = []
    batch = train(stream(9), Windows(length=6, stride=4, others=1), lambda rng, r: seen.append(r) or {"x": np.zeros(1)})
    batch[0]
    record = seen[0]
    want = {"tokens", "segments", "positions", "weights", "marks", "marked", "others", "backward"}
    assert set(record) == want
    assert set(record["others"][0]) == want - {"others"}
    assert [record[k].dtype for k in ("tokens", "segments", "positions", "weights", "marks")] == [
        np.int32, np.int32, np.int32, np.float32, np.uint8,
    ]  # fmt: skip
    assert record["marked"] is False
    assert record["weights"].tolist() == [0, 0, 1, 1, 1, 1]
    assert not record["marks"].any()


def test_others_are_random_places_of_the_same_stream_in_training_and_evaluation():
    tokens = stream(60)
    spec = Windows(length=8, stride=8, others=2)
    found = np.concatenate([train(tokens, spec, others)[step]["others"][:, :, 0] for step in range(300)]).ravel()
    assert len(np.unique(found)) > 0.8 * len(set(tokens.tokens.tolist()))
    held_out = list(Evaluation(tokens, spec, others, 5))
    # The draws belong to the row, not to the batch that it is in.
    again = list(Evaluation(tokens, spec, others, 3))
    rows = [np.concatenate([b["others"] for b in batches])[: -(-len(tokens) // 8)] for batches in (held_out, again)]
    np.testing.assert_array_equal(*rows)
    assert len(np.unique(rows[0][:, :, 0])) > 20


@pytest.mark.parametrize("shares", [1, 2])
def test_static_copies_come_again(shares):
    tokens = stream(30)
    count = ring(tokens) // 8
    streams = ((1.0, tokens),) if shares == 1 else ((0.5, tokens), (0.5, tokens))
    batches = Batches(streams, Windows(length=9, stride=8, copies=3), drawn, batch=1, seed=5)
    rows = [batches[i] for i in range(9 * count * shares)]
    keys = [(r["tokens"].tobytes(), r["draw"].tobytes()) for r in rows]
    assert len(set(keys)) == 3 * count * shares
    assert sorted(keys.count(key) for key in set(keys)) == [3] * (3 * count * shares)
    if shares == 1:
        assert set(keys[: 3 * count]) == set(keys[3 * count : 6 * count])
        order = [[r["tokens"].tobytes() for r in rows[e * count : (e + 1) * count]] for e in (0, 3)]
        assert order[0] != order[1]
        assert sorted(order[0]) == sorted(order[1])


def test_a_copy_is_another_draw_of_its_own():
    tokens = stream(30)
    dynamic = train(tokens, Windows(length=9, stride=8), drawn, batch=1)
    draws = {dynamic[i]["draw"].tobytes() for i in range(400)}
    assert len(draws) == 400


def test_mistakes():
    for changes in ({"stride": 10}, {"stride": 0}, {"others": -1}, {"copies": 2, "order": "reading"}):
        with pytest.raises(ValueError, match=r"stride|copies"):
            Windows(**({"length": 9, "stride": 8} | changes))
    with pytest.raises(UserError, match="unknown order"):
        Windows(length=9, stride=8, order="random")
    for changes in ({"limit": (3,)}, {"limit": (1, 1)}, {"fields": 0, "limit": (3, 3)}, {"fields": -1}):
        with pytest.raises(ValueError, match="limit"):
            Documents(**({"fields": 2, "limit": (3, 3)} | changes))
    assert (Windows(length=9, stride=8).tokens, Documents(limit=[4, 5]).tokens) == (8, 9)


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_evaluation_in_reading_order_goes_on_and_meets_every_token_once(documents, batch, stride, overlap):
    tokens = stream(documents, separator=None)
    if len(tokens) < 2:
        return
    spec = Windows(length=stride + overlap, stride=stride, order="reading")
    steps = list(Evaluation(tokens, spec, lambda rng, r: {k: r[k] for k in ("tokens", "weights")}, batch))
    met = np.concatenate([s["tokens"][s["weights"] > 0] for s in steps])
    assert sorted(met.tolist()) == tokens.tokens[min(overlap, 1) :].tolist()
    for one, two in itertools.pairwise(steps):
        for row in range(batch):
            if two["weights"][row].any():
                assert two["tokens"][row, overlap - 1 if overlap else 0] == one["tokens"][row, -1] + (not overlap)


def marked(tokens: Tokens) -> Tokens:
    marks = (tokens.tokens % 16).astype(np.uint8)
    return Tokens(tokens.tokens, tokens.starts, tokens.header, marks)


@pytest.mark.parametrize("separator", [16, None])
def test_marks_lie_beside_their_tokens(separator):
    tokens = marked(stream(13, separator=separator))

    def look(rng, record):
        assert record["marked"]
        for row in (record, *record["others"]):
            np.testing.assert_array_equal(row["marks"], row["tokens"] % 16 * (row["segments"] > 0))
        return {"tokens": record["tokens"]}

    spec = Windows(length=19, stride=16, others=1)
    for step in range(60):
        train(tokens, spec, look)[step]
    assert len(list(Evaluation(tokens, spec, look, 3)))


FIELDS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30)


def bilingual(sizes, separator=1) -> tuple[Tokens, list[list[list[int]]]]:
    """Documents of fields with the given sizes, all tokens different."""
    ids = iter(range(2, 10_000))
    documents = [[list(itertools.islice(ids, n)) for n in document] for document in sizes]
    laid = [np.array([t for field in d for t in (separator, *field)][1:], int) for d in documents]
    return Tokens.of(laid, separator, 10_000), documents


def listed(rng, record):
    found = [[field.tolist() for field in document] for document in record["documents"]]
    return {"documents": np.array([found, None], object)}


def rows_of(batches) -> list[list[list[list[int]]]]:
    return [row[0] for batch in batches for row in batch["documents"] if row[0]]


@given(FIELDS, st.tuples(st.integers(2, 12), st.integers(2, 12)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_documents_are_given_once_whole_and_within_the_limits(sizes, limit, pack):
    tokens, documents = bilingual(sizes)
    spec = Documents(fields=2, limit=limit, pack=pack)
    rows = rows_of(Evaluation(tokens, spec, listed, 1))
    want = [[field[: most - 1] for field, most in zip(d, limit)] for d in documents]
    assert [d for row in rows for d in row] == want
    for row, after in itertools.pairwise([*rows, None]):
        used = [sum(len(d[k]) + 1 for d in row) for k in (0, 1)]
        assert used[0] <= limit[0]
        assert used[1] <= limit[1]
        if not pack:
            assert len(row) == 1
        elif after:  # next fit: the next document did not fit
            assert any(used[k] + len(after[0][k]) + 1 > limit[k] for k in (0, 1))
    epochs = train(tokens, spec, listed, batch=1)
    for epoch in range(2):
        found = rows_of(epochs[epoch * len(rows) + i] for i in range(len(rows)))
        assert sorted(found) == sorted(rows)


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=20), st.integers(2, 25))
@settings(max_examples=60, deadline=None)
def test_dialogues_have_any_number_of_turns(sizes, limit):
    tokens, documents = bilingual(sizes)
    rows = rows_of(Evaluation(tokens, Documents(fields=0, limit=(limit,)), listed, 1))
    found = [d for row in rows for d in row]
    assert len(found) == len(documents)
    for got, want in zip(found, documents, strict=True):
        flat = [t for turn in want for t in (*turn, 0)][: limit - 1]
        assert [t for turn in got for t in (*turn, 0)][: len(flat)] == flat
        assert sum(len(turn) + 1 for turn in got) <= limit
    assert all(sum(len(turn) + 1 for d in row for turn in d) <= limit for row in rows)


def test_a_document_with_other_fields_is_named():
    tokens, _ = bilingual([(1, 2), (3,), (1, 1)])
    with pytest.raises(UserError, match="document 1 of 3 has 1 fields where the objective needs 2"):
        Documents().open(tokens)


@pytest.mark.parametrize("separator", [1, None])
def test_plain_documents_are_one_field(separator):
    tokens = stream(20, separator=separator)
    rows = rows_of(Evaluation(tokens, Documents(fields=1, limit=(40,)), listed, 1))
    assert [t for row in rows for d in row for t in d[0]] == [t for t in tokens.tokens.tolist() if t != separator]


def test_mixtures_shards_and_padding_of_documents():
    one, two = stream(20, seed=0), stream(9, seed=1)
    spec = Documents(fields=1, limit=(40,))

    def count(rng, record):
        return {"n": np.array([len(record["documents"])]), "first": record["documents"][0][0][:1]}

    mixed = Batches(((0.75, one), (0.25, two)), spec, count, 8)
    assert sum((mixed[step]["first"] > 9_000).sum() for step in range(50)) == 100
    steps = Evaluation(one, spec, count, 3)
    assert sum(int(step["n"].sum()) for step in steps) == 20
    shards = [Evaluation(one, spec, count, 3, shard=s)[len(steps) - 1] for s in ((0, 1), (1, 3))]
    same({k: np.concatenate([s[k] for s in shards]) for k in ("n", "first")}, steps[len(steps) - 1])


def test_a_million_documents_open_in_seconds():
    count = 1_000_000
    sizes = np.random.default_rng(0).integers(1, 40, 2 * count)
    borders = np.concatenate([[0], np.cumsum(sizes + 1)])
    ids = np.full(borders[-1] + 1, 7, np.uint16)
    ids[borders] = 1
    tokens = Tokens(ids, borders[:-1:2], {"raw_bytes": 0, "separator": 1, "vocab": 10})
    begin = time.process_time()
    opened = Documents(fields=2, limit=(128, 128)).open(tokens)
    assert time.process_time() - begin < 8
    assert opened.count > count / 128
    sizes = opened._sizes()[opened.packs[5] : opened.packs[6]].sum(axis=0)
    assert (sizes <= 128).all()


def test_next_fit():
    assert next_fit(np.array([[5], [4], [3], [6]]), (8,)).tolist() == [0, 1, 3, 4]
    assert next_fit(np.zeros((0, 2), int), (8, 8)).tolist() == [0]
