"""Probes: labels that the states hold are found, others are not; the states are those of transformers."""

import numpy as np
import pytest

from lm.errors import UserError
from lm.explain.probing import Item, encode, features, probe, read_items, wilson
from tests.explain import opened

torch = pytest.importorskip("torch")


def test_states_are_those_of_transformers(models):
    """Of a word that of its last token, of a text the mean; in rows of several lengths."""
    theirs, objective, params, tokenizer = opened(models, "bert")
    items = [Item(["the", "catsat", "on"], ["a", "b", "c"]), Item(["dog", "sat"], ["a", "b"])]
    vectors, owners = features(objective, params, tokenizer, items)
    by_owner = {owner: vectors[:, k] for k, owner in enumerate(owners)}
    ids, places = encode(objective, tokenizer, items[0])
    with torch.no_grad():
        found = theirs(torch.tensor(ids[None], dtype=torch.long), output_hidden_states=True).hidden_states
    for level, states in enumerate(found):
        np.testing.assert_allclose(by_owner[(0, "catsat")][level], states[0, places[1].stop - 1], atol=1e-4)
    text, _ = features(objective, params, tokenizer, [Item(["the cat sat"], ["x"])])
    ids, (place,) = encode(objective, tokenizer, Item(["the cat sat"], ["x"]))
    with torch.no_grad():
        states = theirs(torch.tensor(ids[None], dtype=torch.long), output_hidden_states=True).hidden_states[2][0, place]
    np.testing.assert_allclose(text[2, 0], states.mean(0), atol=1e-4)


def test_real_labels_and_control_labels(models, tmp_path):
    """Whether a word is a vowel's is in its embedding; a label at random is not, but for words seen before."""
    _, objective, params, tokenizer = opened(models, "gpt2")
    rng = np.random.default_rng(0)
    words = [["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(6)] for _ in range(60)]
    (tmp_path / "w.conll").write_text("\n".join("".join(f"{w}\t{'V' if w[-1] in 'ae' else 'C'}\n" for w in s) for s in words))
    items = read_items(str(tmp_path / "w.conll"))
    assert len(items) == 60
    found = probe(objective, params, tokenizer, items)
    assert found.unit == "words"
    assert sum(found.counts) == 360
    assert found.accuracy.shape == (4,)
    assert found.accuracy[0] > 0.95 > found.majority
    assert found.selectivity[0] > 0.1
    assert ((found.low < found.accuracy) & (found.accuracy <= found.high + 1e-9)).all()


def test_texts(models, tmp_path):
    _, objective, params, tokenizer = opened(models, "t5")
    rows = [f"{'aaaa' if k % 2 else 'bbbb'}{'xyz'[k % 3]},{k % 2}" for k in range(40)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows))
    found = probe(objective, params, tokenizer, read_items(str(tmp_path / "t.csv")))
    assert (found.unit, found.labels, found.counts) == ("texts", ["0", "1"], (30, 10))
    assert found.accuracy.min() == 1  # the encoder's states, too
    for name, said in (("none.csv", "no such file"), ("t.csv", "no 'words'")):
        with pytest.raises(UserError, match=said):
            read_items(str(tmp_path / name), text="words")
    with pytest.raises(UserError, match="too few"):
        probe(objective, params, tokenizer, [Item(["a"], ["b"])] * 3)


def test_wilson():
    from scipy.stats import binomtest

    low, high = wilson(np.array([0.9]), 40)
    interval = binomtest(36, 40).proportion_ci(method="wilson")
    np.testing.assert_allclose([low[0], high[0]], [interval.low, interval.high], atol=1e-6)
