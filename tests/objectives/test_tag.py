"""Tags of words: where they are asked for, windows of long sentences, the random field on packed rows."""

import jax
import numpy as np
import pytest

from lm.config import load
from lm.data.examples import Example
from lm.data.framing import Frame
from lm.data.prepare import prepare
from lm.errors import UserError
from lm.models.crf import log_partition, path_score
from lm.objectives import trunk
from lm.objectives.base import resolve
from lm.objectives.tag import Tag
from lm.objectives.trunk import Rows
from lm.sharding import unbox
from tests.data.test_framing import KINDS, TEXT
from tests.objectives.labelled import WORDS, model, words

LABELS = ("O", "B-X", "I-X")


def ready(tokenizer=None, **fields) -> Tag:
    fields = {"model": model(vocab=500), "labels": LABELS, "rows": Rows(length=24, row=48), **fields}
    return trunk.knowing(Tag(**fields), Frame(tokenizer or words(), "bert"))


def sentence(count: int, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    tags = [LABELS[i] for i in rng.integers(0, 3, count)]
    return Example({"words": [WORDS[i] for i in rng.integers(0, 10, count)], "tags": tags}, f"here:{seed}")


@pytest.mark.parametrize("kind", KINDS)
def test_tags_stand_at_the_first_token_of_each_word(kind):
    """Under every tokenizer: as many as words, in order, and each word's tokens begin there."""
    tokenizer = KINDS[kind]().with_special(("[PAD]", "[CLS]", "[SEP]"))
    parts = TEXT.split()
    spaced = kind != "characters"
    tags = [("O", "B-X")[i % 2] for i in range(len(parts))]
    example = Example({"words": parts, "tags": tags, "spaced": spaced}, "x")
    objective = ready(tokenizer, model=model(context=256, vocab=500), rows=Rows(length=200, row=200))
    row = objective.corrupt(None, {"examples": [(example, 0)], "room": 30})
    real = row["weights"] > 0
    assert real.sum() == len(parts)
    assert [LABELS[i] for i in row["targets"][real]] == example.values["tags"]
    pieces = objective.frame.words(parts, spaced, "x")
    for place, ids in zip(row["places"][real], pieces):
        assert row["tokens"][place : place + len(ids)].tolist() == ids.tolist()


def test_each_word_of_a_long_sentence_counts_once_and_keeps_its_context():
    objective, example = ready(), sentence(100)
    found = objective.lay(example)
    assert len(found) > 4
    assert np.concatenate([own for _, own, _ in found]).tolist() == list(range(100))
    for laid, own, places in found:
        assert len(laid.tokens) <= 24
        expected = [objective.frame.tokenizer.token_id(example.values["words"][i]) for i in own]
        assert laid.tokens[places].tolist() == expected
    assert all(len(own) for _, own, _ in found)
    inner = found[2][2]
    assert inner[0] > 3
    assert inner[-1] < 20  # words around it are read, too


@pytest.mark.parametrize("crf", [False, True])
def test_the_loss_is_that_of_each_sentence_alone(crf):
    objective = ready(crf=crf, forbid="never")
    examples = [sentence(n, seed) for seed, n in enumerate((3, 7, 1, 9))]
    packed = objective.corrupt(None, {"examples": [(one, 0) for one in examples], "room": 20})
    batch = {name: x[None] for name, x in packed.items()}
    params = unbox(objective.init(jax.random.key(1), batch))
    params["classifier"]["kernel"] += np.random.default_rng(0).normal(size=params["classifier"]["kernel"].shape)
    sums, _ = objective.loss(params, batch, None, None)
    total, hits, guesses = 0.0, 0.0, []
    for one in examples:
        alone = {name: x[None] for name, x in objective.corrupt(None, {"examples": [(one, 0)], "room": 9}).items()}
        logits = np.asarray(objective.logits(params, alone))[0, : len(one.values["words"])]
        gold = objective.targets(one)
        if crf:
            weights = objective.chain(params, "training")
            real, begins = np.ones((1, len(gold)), bool), np.arange(len(gold))[None] == 0
            one_sum = log_partition(logits[None], real, begins, weights) - path_score(
                logits[None], gold[None], real, begins, weights
            )
            total += float(one_sum[0])
        else:
            log = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
            total -= log[np.arange(len(gold)), gold].sum()
        guesses.append(np.asarray(objective.predict(params, alone)["guess"])[0, : len(gold)])
        hits += (guesses[-1] == gold).sum()
    np.testing.assert_allclose(sums["loss"][0], total, rtol=1e-4)
    np.testing.assert_allclose(sums["accuracy"][0], hits)
    found = jax.device_get(objective.predict(params, batch))
    outcomes = objective.outcomes({"examples": [(one, 0) for one in examples]}, {k: v[0] for k, v in found.items()})
    for outcome, guess in zip(outcomes, guesses):
        assert outcome["guess"] == [LABELS[i] for i in guess]


def test_windows_are_put_together_again():
    objective, example = ready(), sentence(100)
    count = len(objective.lay(example))
    parts = [
        {"words": own.tolist(), "guess": [f"t{i}" for i in own]}
        for part in reversed(range(count))
        for own in [objective.lay(example)[part][1]]
    ]
    assert objective.merge(parts) == [f"t{i}" for i in range(100)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": ["one"], "tags": []}, "here: 1 words and 0 tags"),
        ({"words": ["one"], "tags": ["B-Z"]}, "here: label 'B-Z' is not among"),
        ({"words": "one", "tags": ["O"]}, "here: 'words' is str, not list"),
    ],
)
def test_mistakes_name_the_sentence(values, message):
    with pytest.raises(UserError, match=message):
        ready().targets(Example(values, "here"))


def test_a_row_is_shown_with_its_tags():
    config = load("tests/configs/tiny_tag.py")
    config, corpus = resolve(config, prepare(config.data))
    assert config.objective.labels[0] == "O"
    (example,) = [e for e in corpus.train[0][1].examples if "Nations" in e.values["words"]] or [None]
    if example is None:
        (example,) = [e for e in corpus.validation.examples if "Nations" in e.values["words"]]
    row = config.objective.corrupt(None, {"examples": [(example, 0)], "room": 20})
    assert "United/B-ORG Nations/I-ORG met/O in/O New/B-LOC York/I-LOC" in config.objective.show(corpus.tokenizer, row)
