"""Rows: segments and positions against a slow, obvious reading of the stream."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.corpus.store import Tokens
from lm.data.rows.packing import ring, window, wrapped

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
