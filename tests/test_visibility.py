"""Visibility, measured by exchanging tokens, equals the masks that the arrays of a batch describe."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lm.errors import UserError
from lm.explain.visibility import visibility
from lm.objectives.base import training_batches
from tests.objectives.test_contract import prepared

SEGMENTS = np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0])  # two documents and padding
POSITIONS = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0])
T, S = np.arange(len(SEGMENTS))[:, None], np.arange(len(SEGMENTS))
SAME = SEGMENTS[:, None] == SEGMENTS
REAL = SEGMENTS > 0


def short(name: str):
    """Return a tiny config's objective, and a batch of its first twelve positions, laid out as SEGMENTS."""
    config, _, batch = prepared(Path(f"tests/configs/{name}.py"))
    row = {key: x[:, : len(SEGMENTS)] if x.ndim > 1 else x for key, x in batch.items()}
    return config.objective, row | {"segments": SEGMENTS[None], "positions": POSITIONS[None]}


def test_documents_of_a_causal_row():
    objective, batch = short("tiny")
    measured = visibility(objective, [batch])
    assert (measured.seen["tokens"] == (SAME & (S <= T)))[REAL].all()
    assert (measured.weights_T == batch["weights"][0]).all()


def test_masked_tokens_depend_on_both_sides():
    objective, batch = short("tiny_masked")
    batch |= {
        "places": np.array([[2, 7, 0]]),
        "targets": np.array([[65, 66, 0]]),
        "weights": np.array([[1, 1, 0]], np.float32),
    }
    measured = visibility(objective, [batch])
    assert (measured.seen["tokens"] == SAME)[REAL].all()
    assert np.flatnonzero(measured.weights_T).tolist() == [2, 7]


def test_a_prefix_is_visible_to_its_document():
    objective, batch = short("tiny_prefix")
    prefix = np.isin(S, (0, 1, 2, 5, 6))
    measured = visibility(objective, [batch | {"prefix": prefix[None]}])
    assert (measured.seen["tokens"] == (SAME & ((S <= T) | prefix)))[REAL].all()


def test_permuted_tokens_depend_on_those_of_lower_rank():
    config, _, batch = prepared(Path("tests/configs/tiny_permuted.py"))
    rank, reach = batch["rank"][0], batch["reach"][0]
    query = rank < reach[:, None]
    content = query | np.eye(len(rank), dtype=bool)
    assert config.objective.model.depth == 2
    expected = query | (query @ content)
    measured = visibility(config.objective, [batch])
    assert (measured.seen["tokens"] == expected).all()
    places = batch["places"][0][batch["weights"][0] > 0]
    assert not measured.seen["tokens"][places, places].any()
    assert np.flatnonzero(measured.weights_T).tolist() == sorted(places)


def test_memory_reaches_back_by_its_length():
    config, corpus, _ = prepared(Path("tests/configs/tiny_recurrent.py"))
    model = dataclasses.replace(config.objective.model, depth=1, memory=5)
    objective = dataclasses.replace(config.objective, model=model)
    batches = training_batches(config, corpus)
    seen = visibility(objective, [batches[0], batches[1]]).seen
    assert (seen["tokens"] == np.tri(16, dtype=bool)).all()
    assert (seen["memory/tokens"] == (np.arange(16) >= 11)).all()


def test_pairs_of_a_row_depend_on_their_own_source():
    objective, batch = short("tiny_seq2seq")
    source_segments = np.array([1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 0])
    batch |= {"source_segments": source_segments[None], "source_positions": POSITIONS[None]}
    seen = visibility(objective, [batch]).seen
    assert (seen["tokens"] == (SAME & (S <= T)))[REAL].all()
    assert (seen["source"] == (SEGMENTS[:, None] == source_segments))[REAL].all()


def test_a_loss_of_whole_rows_is_refused():
    config, _, batch = prepared(Path("tests/configs/tiny_contrastive.py"))
    with pytest.raises(UserError, match="no weights of tokens"):
        visibility(config.objective, [batch])
