"""Batches: pure functions of (seed, step), the same through every shard, nothing lost, nothing twice."""

import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.corpus.store import Tokens
from lm.data.rows.packing import ring
from lm.data.rows.pipeline import Batches, Evaluation, prefetch
from lm.data.rows.records import Windows
from lm.errors import UserError


def causal(rng, record):
    tokens, weights = record["tokens"], record["weights"]
    rest = {name: record[name][:-1] for name in ("segments", "positions")}
    return {"tokens": tokens[:-1], "targets": tokens[1:], "weights": weights[1:], "draw": rng.random(3), **rest}


def whole(rng, record):
    return {name: value for name, value in record.items() if name != "others"}


def stream(documents: int, seed: int = 0, separator: int | None = 1, vocab: int = 100_000) -> Tokens:
    """Documents whose tokens are all different, so that a target names its place."""
    sizes = np.random.default_rng(seed).integers(1, 30, documents)
    ids = np.arange(2, 2 + sizes.sum()) + 10_000 * seed
    return Tokens.of(np.split(ids, np.cumsum(sizes)[:-1]), separator, vocab)


def batches(tokens, **changes):
    spec = {"length": 17, "stride": 16}
    spec |= {name: changes.pop(name) for name in [*changes] if name in ("length", "stride", "order", "others", "copies")}
    settings_ = {"corrupt": causal, "batch": 6, "seed": 3} | changes
    return Batches(((1.0, tokens),), Windows(**spec), **settings_)


def evaluation(tokens, length, stride, corrupt, batch, order="shuffled", **changes):
    return Evaluation(tokens, Windows(length=length, stride=stride, order=order), corrupt, batch, **changes)


def same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_shapes_and_types():
    batch = batches(stream(50))[0]
    assert {name: value.shape for name, value in batch.items()} == {
        "tokens": (6, 16), "targets": (6, 16), "weights": (6, 16), "segments": (6, 16), "positions": (6, 16),
        "draw": (6, 3),
    }  # fmt: skip
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


@pytest.mark.parametrize("order", ["shuffled", "reading"])
def test_seeking_equals_iterating_and_depends_on_nothing_else(order):
    tokens = stream(50)
    straight = [batch for batch, _ in zip(batches(tokens, order=order), range(30))]
    fresh = batches(tokens, order=order)
    for step in (29, 0, 13, 13):
        same(fresh[step], straight[step])
    ahead = list(prefetch(batches(tokens, order=order), 5, 30))
    assert len(ahead) == 25
    for one, two in zip(ahead, straight[5:], strict=True):
        same(one, two)


def test_another_seed_is_another_order_and_other_draws():
    one, two = batches(stream(50))[0], batches(stream(50), seed=4)[0]
    assert not np.array_equal(one["tokens"], two["tokens"])
    assert not np.array_equal(one["draw"], two["draw"])


def test_draws_differ_between_rows_steps_and_epochs():
    many = batches(stream(20))
    draws = np.concatenate([many[step]["draw"] for step in range(40)])
    assert len(np.unique(draws)) == draws.size


@given(st.integers(1, 9), st.integers(0, 200), st.data())
@settings(max_examples=30, deadline=None)
def test_shards_put_together_are_the_whole_batch(batch, step, data):
    tokens = stream(40)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, batch - 1)), max_size=3)) - {batch})
    edges = [0, *cuts, batch]
    for order in ("shuffled", "reading"):
        want = batches(tokens, batch=batch, order=order)[step]
        shards = [batches(tokens, batch=batch, order=order, shard=shard)[step] for shard in itertools.pairwise(edges)]
        same({name: np.concatenate([shard[name] for shard in shards]) for name in want}, want)


@pytest.mark.parametrize("separator", [1, None])
@pytest.mark.parametrize("packing", ["documents", "windows"])
def test_an_epoch_predicts_every_token_at_most_once_and_leaves_out_less_than_a_stride(separator, packing):
    tokens = stream(200, separator=separator)
    rows = ring(tokens) // 16
    source = batches(tokens, batch=1, packing=packing)
    missed = []
    for epoch in range(3):
        seen = Counter()
        for step in range(epoch * rows, (epoch + 1) * rows):
            seen.update(source[step]["targets"].ravel().tolist())
        counts = Counter(tokens.tokens[: ring(tokens)].tolist())
        assert not seen - counts
        missed.append(sum((counts - seen).values()))
    assert max(missed) < 16


def test_epochs_are_cut_and_ordered_differently():
    tokens = stream(200)
    rows = ring(tokens) // 16
    source = batches(tokens, batch=rows)
    firsts = [source[epoch]["tokens"][:, 0] for epoch in range(3)]
    assert all(not np.array_equal(np.sort(a), np.sort(b)) for a, b in itertools.pairwise(firsts))
    assert not np.array_equal(firsts[0], np.sort(firsts[0]))


def test_mixture_draws_rows_by_weight():
    one, two = stream(50, seed=0), stream(9, seed=1)
    source = Batches(((0.75, one), (0.25, two)), Windows(length=17, stride=16), causal, 8, seed=0)
    from_two = [(source[step]["tokens"].max(axis=1) > 9_000).sum() for step in range(50)]
    assert sum(from_two) == 100
    same(source[7], Batches(((0.75, one), (0.25, two)), Windows(length=17, stride=16), causal, 8, seed=0)[7])
    with pytest.raises(UserError, match="no reading order"):
        Batches(((0.75, one), (0.25, two)), Windows(length=17, stride=16, order="reading"), causal, 8)


def test_reading_order_goes_on_where_each_row_stopped():
    source = batches(stream(100), order="reading", packing="windows")
    for step in range(40):
        np.testing.assert_array_equal(source[step]["targets"][:, -1], source[step + 1]["tokens"][:, 0])


@pytest.mark.parametrize("length", [2, 3, 40])
def test_a_corpus_smaller_than_a_window_repeats(length):
    tokens = Tokens.of([np.arange(10, 8 + length)] if length > 2 else [np.zeros(0, int)], 1, 100)
    assert len(tokens) == length
    batch = batches(tokens, length=65, stride=64)[5]
    assert batch["tokens"].shape == (6, 64)
    assert (batch["segments"] > 0).all()


def test_nothing_to_predict_is_said():
    empty = Tokens.of([], 1, 100)
    with pytest.raises(UserError, match="nothing to train on"):
        batches(empty)
    with pytest.raises(UserError, match="nothing to train on"):
        batches(Tokens.of([np.array([5])], None, 100))
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluation(empty, 17, 16, causal, 4)


@given(
    st.integers(1, 40), st.integers(1, 33), st.integers(1, 5), st.sampled_from([1, None]),
    st.sampled_from(["documents", "windows"]), st.data(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_evaluation_meets_every_token_but_the_first_once(documents, stride, batch, separator, packing, data):
    tokens = stream(documents, separator=separator)
    if len(tokens) < 2:
        return
    overlap = data.draw(st.integers(1, 20))
    found = []
    steps = evaluation(tokens, stride + overlap, stride, whole, batch, packing=packing)
    for step in steps:
        assert step["tokens"].shape == (batch, stride + overlap)
        assert (step["weights"][step["segments"] == 0] == 0).all()
        found += step["tokens"][step["weights"] > 0].tolist()
    assert found == tokens.tokens[1:].tolist()
    assert len(list(steps)) == len(steps)


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_evaluation_without_overlap_meets_every_token_once(batch):
    tokens = stream(30)
    found = [b["tokens"][b["weights"] > 0] for b in evaluation(tokens, 16, 16, whole, batch)]
    assert np.concatenate(found).tolist() == tokens.tokens.tolist()


def test_evaluation_shards_put_together_are_the_whole():
    tokens = stream(7)
    steps = evaluation(tokens, 9, 8, causal, 5)
    shards = [evaluation(tokens, 9, 8, causal, 5, shard=shard) for shard in ((0, 2), (2, 4), (4, 5))]
    assert {len(shard) for shard in shards} == {len(steps)}
    for step in range(len(steps)):
        same({n: np.concatenate([shard[step][n] for shard in shards]) for n in steps[step]}, steps[step])
    with pytest.raises(IndexError):
        steps[len(steps)]


class Broken:
    def __getitem__(self, step):
        if step == 3:
            raise KeyError("row 3")
        return {"step": np.array(step)}


def test_prefetch_hands_an_exception_over_in_its_place():
    found = prefetch(Broken(), 0, 10, depth=4)
    assert [next(found)["step"].item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="row 3"):
        next(found)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetch_works_ahead_in_a_thread_and_stops_when_closed(depth):
    made, threads = [], set()

    class Slow:
        def __getitem__(self, step):
            made.append(step)
            threads.add(threading.current_thread().name)
            return {"step": np.array(step)}

    before = threading.active_count()
    found = prefetch(Slow(), 7, depth=depth)
    assert next(found)["step"] == 7
    time.sleep(0.05)
    assert made == list(range(7, 8 + depth))
    assert threading.main_thread().name not in threads
    found.close()
    time.sleep(0.05)
    assert threading.active_count() == before
    assert len(made) == depth + 1


def test_wrong_shapes_are_refused():
    tokens = stream(5)
    for changes in ({"stride": 18}, {"stride": 0}, {"shard": (2, 9)}, {"shard": (3, 3)}):
        with pytest.raises(ValueError, match=r"stride|shard"):
            batches(tokens, **changes)
    with pytest.raises(UserError, match="batch=0"):
        batches(tokens, batch=0)
