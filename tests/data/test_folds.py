"""k-fold: parts that are disjoint, whole, equal, and keep together what is alike."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lm.config import Data
from lm.data.corpus.prepare import prepare
from lm.data.corpus.split import assign_folds, hold_out_fold, parse_fold
from lm.data.labelled.files import Labelled
from lm.data.sources import Mixture
from lm.data.text.files import Text
from lm.data.tokenizer.tokenizer import Bytes
from lm.data.types import Example
from lm.errors import UserError

REVIEWS = "tests/configs/reviews.csv"


def some(count: int, seed: int) -> list[Example]:
    """Examples of which many share their text, with another label, or their group."""
    chance = random.Random(seed)
    found = []
    for i in range(count):
        values = {"text": f"text {chance.randrange(count)}", "label": chance.choice("ab"), "stars": i}
        values |= {"id": str(i), "idx": str(i)}
        found.append(Example(values, f"f:{i}", f"group {i % 5}" if chance.random() < 0.2 else ""))
    return found


@pytest.mark.parametrize(("count", "seed"), [(2, 0), (3, 1), (5, 2), (10, 3)])
def test_what_is_alike_stays_together_and_parts_are_near_each_other(count, seed):
    examples = some(200, seed)
    part_N = assign_folds(examples, count)
    alike = {}
    for one, part in zip(examples, part_N):
        alike.setdefault(one.group or one.values["text"], set()).add(part)
    assert all(len(parts) == 1 for parts in alike.values())
    largest = max(Counter(one.group or one.values["text"] for one in examples).values())
    sizes = Counter(part_N.tolist())
    assert set(sizes) == set(range(count))
    assert max(sizes.values()) - min(sizes.values()) <= largest
    shuffled = random.Random(9).sample(range(200), 200)  # the order of the file says nothing
    assert assign_folds([examples[i] for i in shuffled], count).tolist() == part_N[shuffled].tolist()


@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_single_examples_make_parts_that_differ_by_one_at_most(count):
    examples = [Example({"text": str(i), "label": "a"}, "") for i in range(101)]
    sizes = Counter(assign_folds(examples, count).tolist())
    assert sorted(sizes.values()) == sorted(101 // count + (k < 101 % count) for k in range(count))


def test_a_text_in_two_sources_is_on_one_side():
    data = Data(source=Mixture(sources=(Labelled(path=REVIEWS), Labelled(path=REVIEWS)), weights=(1, 1)), tokenizer=Bytes())
    seen = []
    for k in (1, 2, 3):
        corpus = prepare(replace(data, fold=f"{k}/3"))
        out = [one.values["text"] for one in corpus.validation.examples]
        assert all(count == 2 for count in Counter(out).values())
        assert not set(out) & {one.values["text"] for _, side in corpus.train for one in side.examples}
        assert len(out) + sum(len(side) for _, side in corpus.train) == 48
        seen += out
    assert len(seen) == 48


def test_every_example_is_held_out_once_and_validation_is_not_looked_at():
    data = Data(source=Labelled(path=REVIEWS), tokenizer=Bytes(), validation=Labelled(path="/nowhere.csv"))
    corpora = [prepare(replace(data, fold=f"{k}/5")) for k in range(1, 6)]
    held_out = [one.where for corpus in corpora for one in corpus.validation.examples]
    assert len(held_out) == len(set(held_out)) == 24
    assert sorted(len(corpus.validation) for corpus in corpora) == [4, 5, 5, 5, 5]
    assert len({corpus.sha256 for corpus in corpora}) == 5  # a run does not go on with another fold
    assert all(corpus.name.startswith("fold ") for corpus in corpora)


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "a/b", "-1/5"])
def test_a_fold_that_is_none(fold):
    with pytest.raises(UserError, match="write 2/5"):
        Data(source=Labelled(path=REVIEWS), fold=fold)
    assert parse_fold("2/5") == (2, 5)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match="labelled examples"):
        Data(source=Text(path=REVIEWS), fold="1/5")
    with pytest.raises(UserError, match=r"24 group.* 25 folds"):
        prepare(Data(source=Labelled(path=REVIEWS), tokenizer=Bytes(), fold="1/25"))
    lone = tmp_path / "lone.csv"
    lone.write_text("text,label\nalone,good\n")
    reads = [Labelled(path=REVIEWS).open(), Labelled(path=str(lone)).open()]
    (alone,) = np.flatnonzero([one.values["text"] == "alone" for read in reads for one in read])
    own = assign_folds([one for read in reads for one in read], 2)[alone] + 1
    with pytest.raises(UserError, match=r"lone.csv without a training example"):
        hold_out_fold(reads, f"{own}/2")
    assert len(hold_out_fold(reads, f"{3 - own}/2")[0][1]) == 1
