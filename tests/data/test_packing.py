"""Rows: segments and positions against a slow, obvious reading of the stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.corpus.store import Tokens
from lm.data.rows.packing import first_fit, pack, ring, window, wrapped

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=8)


def stream(sizes, separator=9):
    """Documents of the given sizes whose ids tell them apart."""
    return Tokens.of([np.full(size, 10 + k) for k, size in enumerate(sizes)], separator, 100)


def test_layout():
    tokens = stream([2, 1])
    assert tokens.tokens.tolist() == [9, 10, 10, 9, 11, 9]
    assert tokens.starts.tolist() == [0, 3]
    assert stream([2, 1], None).tokens.tolist() == [10, 10, 11]
    assert stream([2, 1], None).starts.tolist() == [0, 2]


def slow(tokens, places):
    """Number documents and positions token by token."""
    segments, positions, segment, position = [], [], 1, -1
    for k, at in enumerate(places):
        begins = at in set(tokens.starts.tolist()) and k > 0
        segment, position = (segment + 1, 0) if begins else (segment, position + 1)
        segments.append(segment)
        positions.append(position)
    return segments, positions


@given(SIZES, st.sampled_from([9, None]), st.integers(0, 60), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_window_and_wrapped(sizes, separator, start, length):
    tokens = stream(sizes, separator)
    if not ring(tokens):
        return
    start %= len(tokens)
    row = window(tokens, start, length)
    real = min(length, len(tokens) - start)
    segments, positions = slow(tokens, range(start, start + real))
    assert row["tokens"].tolist() == tokens.tokens[start : start + length].tolist() + [0] * (length - real)
    assert row["segments"].tolist() == segments + [0] * (length - real)
    assert row["positions"].tolist() == positions + [0] * (length - real)

    row = wrapped(tokens, start, length)
    places = [(start + k) % ring(tokens) for k in range(length)]
    assert row["tokens"].tolist() == tokens.tokens[places].tolist()
    segments, positions = slow(tokens, places)
    assert row["segments"].tolist() == segments
    assert row["positions"].tolist() == positions
    assert all(value.dtype == np.int32 and value.shape == (length,) for value in row.values())


@given(SIZES, st.integers(0, 20), st.integers(1, 20))
def test_windows_are_one_segment(sizes, start, length):
    tokens = stream(sizes)
    row = wrapped(tokens, start, length, "windows")
    assert row["segments"].tolist() == [1] * length
    assert row["positions"].tolist() == list(range(length))


@given(st.lists(st.integers(1, 12), max_size=30))
def test_pack_keeps_every_example_once(sizes):
    examples = [{"tokens": np.full(n, k + 1, np.int32), "weights": np.ones(n, np.float32)} for k, n in enumerate(sizes)]
    packed = pack(examples, 12)
    if not sizes:
        assert packed["segments"].shape == (0, 12)
        return
    for name in ("tokens", "weights", "segments", "positions"):
        assert packed[name].shape == packed["tokens"].shape
    assert packed["tokens"].dtype == np.int32
    assert packed["weights"].dtype == np.float32
    np.testing.assert_array_equal(packed["weights"] > 0, packed["segments"] > 0)
    for k, size in enumerate(sizes):
        rows, columns = np.nonzero(packed["tokens"] == k + 1)
        assert len(set(rows)) == 1
        assert np.diff(columns).tolist() == [1] * (size - 1)
        assert packed["positions"][rows, columns].tolist() == list(range(size))
        assert len(set(packed["segments"][rows, columns])) == 1
    for row in packed["segments"]:
        used = row[row > 0]
        assert (np.diff(used) >= 0).all()
        assert set(used) == set(range(1, used.max() + 1))


def test_first_fit_uses_the_first_row_with_room():
    assert first_fit([5, 4, 3, 6], 8) == [(0, 0, 1), (1, 0, 1), (0, 5, 2), (2, 0, 1)]


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="example 1 has 5 tokens"):
        pack([{"tokens": np.zeros(2)}, {"tokens": np.zeros(5)}], 4)


def test_pack_keeps_inner_axes():
    packed = pack([{"tokens": np.ones((2, 3))}, {"tokens": np.ones((1, 3))}], 4)
    assert packed["tokens"].shape == (1, 4, 3)
    assert packed["segments"].tolist() == [[1, 1, 2, 0]]
