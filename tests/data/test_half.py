"""Halves of the held-out data: disjoint, complete, a choice and its judgement apart."""

import numpy as np
import pytest

from lm.data.corpus.corpus import Data
from lm.data.corpus.prepare import prepare
from lm.data.corpus.store import Tokens
from lm.data.demo import Documentation
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError


@pytest.mark.parametrize("separator", [9, None])
def test_halves_of_a_stream(separator):
    documents = [np.full(n, n) for n in (5, 2, 4, 3)]
    whole = Tokens.of(documents, separator, 10, raw_bytes=140)
    first, second = whole.half(False), whole.half(True)
    edge = [] if separator is None else [separator]
    for half, inside in ((first, documents[:2]), (second, documents[2:])):
        again = Tokens.of(inside, separator, 10)
        assert np.array_equal(half.tokens, again.tokens)
        assert np.array_equal(half.starts, again.starts)
    # Every target is in one half: the bytes are divided like the targets.
    assert len(first) - 1 + len(second) - 1 == len(whole) - 1 - (not edge)
    assert abs(first.raw_bytes + second.raw_bytes - 140) <= 1 + 140 * (not edge) / (len(whole) - 1)


def test_a_single_document_is_cut():
    whole = Tokens.of([np.arange(8)], None, 10, raw_bytes=8)
    assert [list(whole.half(side).tokens) for side in (False, True)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(whole.half(True).starts) == [0]


def test_a_corpus_is_halved(tmp_path):
    whole, first, second = (
        prepare(Data(source=Documentation(), tokenizer=Bytes(), half=half), tmp_path) for half in ("", "first", "second")
    )
    assert first.identity() == whole.identity()  # one corpus in the cache, and runs resume
    assert first.train[0][1].tokens.shape == whole.train[0][1].tokens.shape
    assert first.validation.documents + second.validation.documents == whole.validation.documents
    assert 0.4 < len(first.validation) / len(whole.validation) < 0.6


def test_examples_are_halved(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))

    def sides(half):
        data = Data(source=Labelled(path=str(path)), tokenizer=Bytes(), validation=0.4, half=half)
        return [example.where for example in prepare(data, tmp_path).validation.examples]

    assert sorted(sides("first") + sides("second")) == sorted(sides(""))
    path.write_text("text,label\na,1\nb,2\nc,3\n")
    with pytest.raises(UserError, match="too few to be halved"):
        sides("second")
