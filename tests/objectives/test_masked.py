"""Masked language models: shares over a million tokens of each system, rows, and loss and gradient against transformers."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import from_json, to_json
from lm.console import columns, display_width
from lm.data.corpus.store import Tokens
from lm.data.rows.pipeline import Batches
from lm.data.rows.records import Windows
from lm.data.text.words import ALL, ENTITY, PHRASE, WORD
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives.masked import Masked
from lm.progress import changes
from lm.sharding import unbox
from tests.models.reference import arrays, bert_params, documents, stirred

CLS, SEP, MASK, PAD, SEPARATOR, STOP = 95, 96, 97, 98, 99, 5
NAMES = {"[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK, "[PAD]": PAD}


class Pieces:
    """Ids from 60 on go on with the word before them; id 5 is the full stop."""

    ends_sentence = np.arange(100) == STOP

    @staticmethod
    def word_starts(tokens):
        return (tokens < 60) | (tokens >= CLS)


TOKENIZER = SimpleNamespace(
    vocab=100,
    separator=SEPARATOR,
    special_id=NAMES.__getitem__,
    piece_table=Pieces,
    pieces=lambda ids: [f"w{i}" if i < CLS else f"[{i}]" for i in np.asarray(ids).ravel()],
)
BERT = Transformer(
    vocab=100, context=64, width=12, depth=2, heads=3, mlp=20, types=2, activation="gelu", placement="post", eps=1e-12,
    embed_norm=True, transform=True, head_bias=True,
)  # fmt: skip
PAIRS = {
    "bert": "nsp",
    "wwm": "nsp",
    "macbert": "sop",
    "albert": "sop",
    "ernie": "consecutive",
    "phrases": "consecutive",
}
SYSTEMS = {
    "bert": {"copies": 10},
    "wwm": {"unit": "word"},
    "roberta": {"count": "stochastic", "specials": True, "low": 4},
    "roberta words": {"count": "stochastic", "unit": "word"},
    "albert": {"unit": "word", "ngrams": (6 / 11, 3 / 11, 2 / 11)},
    "macbert": {"unit": "word", "ngrams": (0.4, 0.3, 0.2, 0.1)},
    "ernie": {"count": "each", "low": 1},
    "phrases": {"count": "each", "low": 1, "unit": "phrase", "unit_share": 0.5},
}


def objective(system: str, length: int = 64, **changes) -> Masked:
    model = dataclasses.replace(BERT, context=length)
    fields = {**SYSTEMS[system], "sentence": PAIRS.get(system, "none"), **changes}
    return Masked(model=model, **fields).resolve(TOKENIZER)


def stream(tokens: int = 50_000, marked: bool = False, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    texts = []
    while sum(map(len, texts)) < tokens:
        text = rng.integers(0, 95, rng.integers(1, 800), dtype=np.int32)
        text[text == STOP] = 6
        text[rng.random(len(text)) < 0.1] = STOP
        texts.append(text)
    found = Tokens.of(texts, SEPARATOR, 100)
    if marked:
        marks = np.where(rng.random(len(found)) < 0.6, WORD, 0) | np.where(rng.random(len(found)) < 0.4, PHRASE, 0)
        marks = (marks | ENTITY).astype(np.uint8)
        marks[found.tokens == SEPARATOR] = ALL
        found.marks = marks
    return found


def rows(found: Masked, tokens: int, marked: bool = False, seed: int = 1):
    """Corrupt windows of a stream until there are that many tokens."""
    opened = found.records.open(stream(marked=marked), "documents")
    rng = np.random.default_rng(seed)
    while tokens > 0:
        record = opened.record(rng, int(rng.integers(opened.size)))
        example = found.corrupt(rng, record)
        tokens -= int(np.count_nonzero(example["segments"]))
        yield example


def near(found: float, share: float, count: int) -> None:
    assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / count)


def original(example):
    """What the row was before; and which of its tokens were asked for."""
    asked = example["weights"] > 0
    tokens = example["tokens"].copy()
    tokens[example["places"][asked]] = example["targets"][asked]
    chosen = np.zeros(len(tokens), bool)
    chosen[example["places"][asked]] = True
    return tokens, chosen


@pytest.mark.parametrize("system", SYSTEMS)
def test_shares(system):
    """Rate, 80/10/10, the range of random tokens, what may be chosen: over a million tokens."""
    found = objective(system, length=512)
    counts = dict.fromkeys(("all", "open", "chosen", "masked", "kept", "low", "closed"), 0)
    for example in rows(found, 10**6, marked=system == "phrases"):
        tokens, chosen = original(example)
        real = example["segments"] > 0
        opened = real & (tokens < CLS)
        fed = example["tokens"]
        assert (tokens[~real] == PAD).all()
        assert (fed[real & ~chosen] == tokens[real & ~chosen]).all()
        places = example["places"][example["weights"] > 0]
        assert (np.diff(places) > 0).all()
        assert chosen.sum() == len(places)
        counts["all"] += real.sum()
        counts["open"] += opened.sum()
        counts["chosen"] += chosen.sum()
        counts["masked"] += (fed[chosen] == MASK).sum()
        counts["kept"] += (fed[chosen] == tokens[chosen]).sum()
        counts["low"] += (fed[chosen & (fed != tokens)] < found.low).sum()
        counts["closed"] += (chosen & ~opened).sum()
        if found.count == "round":
            budget = min(found.places, max(1, round(0.15 * int(real.sum()))))
            assert chosen.sum() <= budget
            if found.unit == "token":
                assert chosen.sum() == min(budget, opened.sum())
    by_chance = 0.1 / (100 - found.low)
    near(counts["masked"] / counts["chosen"], 0.8 + by_chance, counts["chosen"])
    near(counts["kept"] / counts["chosen"], 0.1 + by_chance, counts["chosen"])
    assert counts["low"] == 0
    assert (counts["closed"] > 0) == found.specials
    if found.count == "round":  # of all tokens, specials counted; whole words sometimes leave a place free
        assert 0.145 < counts["chosen"] / counts["all"] < 0.152
    else:
        base = counts["all"] if found.specials else counts["open"]
        # Tokens of one unit go together: the error is that of a third as many draws.
        near(counts["chosen"] / base, 0.15, base / 3)


@pytest.mark.parametrize("system", ["wwm", "roberta words", "albert", "macbert"])
def test_whole_words_are_never_split(system):
    for example in rows(objective(system), 10**5):
        tokens, chosen = original(example)
        real = example["segments"] > 0
        starts = Pieces.word_starts(tokens) | (np.diff(example["segments"], prepend=0) != 0)
        word = np.cumsum(starts | (np.roll(tokens, 1) >= CLS))
        for number in np.unique(word[chosen]):
            assert chosen[real & (word == number)].all()


def test_units_of_the_data():
    """Words and phrases by the marks, not by the pieces; a share of the rows by single tokens (ERNIE)."""
    marked = stream(marked=True)
    opened = Windows(length=62, stride=62).open(marked)
    rng = np.random.default_rng(0)
    for unit, bit in (("word", WORD), ("phrase", PHRASE)):
        found = objective("ernie", unit=unit, sentence="none")
        for number in range(300):
            record = opened.record(rng, number * 62)
            example = found.corrupt(rng, record)
            _, chosen = original(example)
            starts = (record["marks"] & bit) > 0
            starts |= np.roll(record["tokens"], 1) >= CLS
            number = np.cumsum(starts)
            for one in np.unique(number[chosen[1:-1]]):
                assert chosen[1:-1][(number == one)].all()
    record = Windows(length=62, stride=62).open(stream()).record(rng, 0)
    with pytest.raises(UserError, match="unit='phrase' needs a corpus with marks"):
        objective("ernie", unit="phrase", sentence="none").corrupt(rng, record)


def test_static_copies():
    """The ten maskings of a window come again in the same order; without copies never."""
    tokens = stream(tokens=2000)
    found = objective("bert", sentence="none")
    for copies, same in ((10, True), (0, False)):
        found = dataclasses.replace(found, copies=copies).resolve(TOKENIZER)
        count = found.records.open(tokens).count
        batches = Batches(((1.0, tokens),), found.records, found.corrupt, count)
        epochs = [sorted(map(bytes, batches[k]["tokens"])) for k in (0, 1, 10, 11)]
        assert (epochs[0] == epochs[2]) == same
        assert (epochs[1] == epochs[3]) == same
        assert epochs[0] != epochs[1]


def test_rows_of_pairs():
    for example in rows(objective("bert"), 20_000):
        tokens, _ = original(example)
        real = int(np.count_nonzero(example["segments"]))
        ends = np.flatnonzero(tokens[:real] == SEP)
        assert tokens[0] == CLS
        assert len(ends) == 2
        assert ends[1] == real - 1
        expected = np.zeros(64, np.int32)
        expected[ends[0] + 1 : real] = 1
        np.testing.assert_array_equal(example["types"], expected)
        np.testing.assert_array_equal(example["segments"], np.arange(64) < real)
        np.testing.assert_array_equal(example["positions"], np.arange(64))
        assert example["pair_weights"] == 1


def test_rows_of_packed_documents():
    """[CLS] belongs to the first document and [SEP] to the last; positions begin at each separator."""
    tokens = Tokens.of([np.arange(10, 15), np.arange(20, 22), np.arange(30, 38)], SEPARATOR, 100)
    found = objective("roberta", length=14, rate=0.2)
    rng = np.random.default_rng(0)
    opened = found.records.open(tokens, "documents")
    example = found.corrupt(rng, opened.record(rng, 2))
    before, _ = original(example)
    np.testing.assert_array_equal(before, [CLS, 11, 12, 13, 14, 99, 20, 21, 99, 30, 31, 32, 33, SEP])
    np.testing.assert_array_equal(example["segments"], [1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    np.testing.assert_array_equal(example["positions"], [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 4, 5])
    last = found.corrupt(rng, opened.held_out(rng, opened.once - 1))
    real = np.count_nonzero(last["segments"])
    assert original(last)[0][real - 1] == SEP
    assert (last["tokens"][real:] == PAD).all()
    whole = found.corrupt(rng, found.records.open(tokens, "windows").record(rng, 2))
    np.testing.assert_array_equal(whole["positions"], np.arange(14))
    np.testing.assert_array_equal(whole["segments"], np.ones(14))


@pytest.mark.parametrize("system", SYSTEMS)
def test_hostile_records(system):
    """Empty documents, one token, nothing but padding: rows of the right shapes, predictions only where text is."""
    rng = np.random.default_rng(0)
    found = objective(system)
    length = found.records.length
    for texts in ([[]], [[], [], []], [[7]], [[STOP] * 200], [[70] * 300], [[SEP, MASK, CLS]]):
        tokens = Tokens.of([np.array(text, np.int32) for text in texts], SEPARATOR, 100)
        tokens.marks = np.full(len(tokens), ALL, np.uint8)
        opened = found.records.open(tokens)
        for record in [opened.held_out(rng, 0), opened.record(rng, 0)]:
            before = {k: v.copy() for k, v in record.items() if isinstance(v, np.ndarray)}
            example = found.corrupt(rng, record)
            for name, value in before.items():
                np.testing.assert_array_equal(record[name], value)
            assert example["places"].max() < max(1, np.count_nonzero(example["segments"]))
            assert {x.shape for x in example.values()} <= {(64,), (found.places,), ()}
            found.show(TOKENIZER, example)
    empty = {"tokens": np.zeros(length, np.int32), "segments": np.zeros(length, np.int32), "marked": True}
    empty |= {"positions": np.zeros(length, np.int32), "marks": np.zeros(length, np.uint8)}
    empty["others"] = [empty]
    example = found.corrupt(rng, empty)
    assert example["weights"].sum() == 0
    assert example["segments"].sum() == 0
    assert example.get("pair_weights", 0) == 0


def test_mistakes_are_told():
    for fields, words in (
        ({"rate": 0}, "rate=0"),
        ({"shares": (0.8, 0.1, 0.2)}, "shares"),
        ({"unit": "words"}, "did you mean 'word'"),
        ({"ngrams": (0.5, 0.5), "count": "each"}, "ngrams need"),
        ({"similar": True}, "unit='word'"),
        ({"length": 4}, "rows of 4 tokens"),
        ({"length": 65}, "at most model.context=64"),
    ):
        with pytest.raises(UserError, match=words):
            Masked(model=BERT, **fields)
    with pytest.raises(UserError, match="types"):
        Masked(model=dataclasses.replace(BERT, types=0), sentence="nsp")
    with pytest.raises(UserError, match="smaller than the tokenizer's 100"):
        Masked(model=dataclasses.replace(BERT, vocab=99)).resolve(TOKENIZER)
    resolved = objective("macbert")
    assert from_json(to_json(resolved)) == resolved
    assert resolved.resolve(TOKENIZER) == resolved


# -- the loss ----------------------------------------------------------------------------------------------------------


def batch(found: Masked, count: int = 4, seed: int = 3) -> dict[str, np.ndarray]:
    drawn = rows(found, 10**9, seed=seed)
    examples = [next(drawn) for _ in range(count)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def draw(found: Masked, rows):
    """Every parameter random, norms around 1."""
    shapes = jax.eval_shape(lambda: unbox(found.init(jax.random.key(0), rows)))
    rng = np.random.default_rng(0)

    def one(path, leaf):
        scale = path[-1].key == "scale"
        return jnp.asarray((scale + 0.2 * rng.normal(size=leaf.shape)).astype(np.float32))

    return jax.tree_util.tree_map_with_path(one, shapes)


@functools.cache
def value_and_grad(found: Masked):
    def total(params, rows):
        sums, _ = found.loss(params, rows, None, None)
        weights = {k: jnp.maximum(w, 1) for k, w in found.weights(rows).items()}
        return sum(scale * sums[k][0] / weights[k] for k, scale in found.scales.items()), sums

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def compare(found, expected) -> None:
    """Two trees of gradients, leaf by leaf, relative to the largest entry of all."""
    scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), found, expected)


def test_bert_is_that_of_transformers():
    """MLM and next-sentence loss, and the gradient of their sum in every weight (BertForPreTraining)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found = objective("bert")
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=100, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    stirred(torch, theirs, 0)
    rows = batch(found)
    labels = np.full(rows["tokens"].shape, -100)
    for row, (places, targets, weights) in enumerate(zip(rows["places"], rows["targets"], rows["weights"])):
        labels[row, places[weights > 0]] = targets[weights > 0]
    named = {"input_ids": rows["tokens"], "token_type_ids": rows["types"], "attention_mask": rows["segments"]}
    named |= {"labels": labels, "next_sentence_label": rows["pair"]}
    result = theirs(**{k: torch.tensor(v, dtype=torch.long) for k, v in named.items()})
    result.loss.backward()
    params = bert_params(arrays(theirs), found.model)
    (total, sums), gradient = value_and_grad(found)(params, rows)
    assert float(total) == pytest.approx(result.loss.item(), rel=1e-5)
    assert set(sums) == {"mlm", "accuracy", "pair", "pair_accuracy"}
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None, name
    slopes = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    slopes["cls.predictions.decoder.weight"] = slopes["bert.embeddings.word_embeddings.weight"]
    compare(gradient, bert_params(slopes, found.model))


def test_roberta_is_that_of_transformers():
    """Positions from 2 on, no types, no pairs (RobertaForMaskedLM); padded rows too."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = dataclasses.replace(BERT, types=1, offset=2, eps=1e-5)
    found = Masked(model=model, count="stochastic", specials=True, low=4).resolve(TOKENIZER)
    theirs = transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(
            vocab_size=100, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
            max_position_embeddings=66, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=1,
            layer_norm_eps=1e-5, pad_token_id=1,
        )
    )  # fmt: skip
    stirred(torch, theirs, 1)
    rng = np.random.default_rng(4)
    tokens = Tokens.of([rng.integers(2, 95, 100, dtype=np.int32)], None, 100)
    opened = found.records.open(tokens, "windows")
    examples = [found.corrupt(rng, opened.held_out(rng, number)) for number in range(opened.once)]
    rows = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    assert (rows["segments"] == 0).any()
    labels = np.full(rows["tokens"].shape, -100)
    for row, (places, targets, weights) in enumerate(zip(rows["places"], rows["targets"], rows["weights"])):
        labels[row, places[weights > 0]] = targets[weights > 0]
    fed = np.where(rows["segments"] > 0, np.where(rows["tokens"] == 1, 2, rows["tokens"]), 1)  # their padding is id 1
    rows["tokens"] = fed.astype(np.int32)
    named = {"input_ids": fed, "attention_mask": rows["segments"], "labels": labels}
    result = theirs(**{k: torch.tensor(v, dtype=torch.long) for k, v in named.items()})
    params = bert_params(arrays(theirs), found.model)
    (total, _), _ = value_and_grad(found)(params, rows)
    assert float(total) == pytest.approx(result.loss.item(), rel=1e-5)


def test_packed_documents_are_as_apart():
    """One row of three documents, and three rows of one: the same sums, the same gradient."""
    found = objective("roberta")
    rng = np.random.default_rng(5)
    segments, positions = documents(20, 7, 30, length=64)
    places = np.sort(rng.permutation(57)[: found.places]).astype(np.int32)
    packed = {
        "tokens": rng.integers(0, 95, 64, dtype=np.int32),
        "segments": segments,
        "positions": positions,
        "types": np.zeros(64, np.int32),
        "places": places,
        "targets": rng.integers(0, 95, found.places, dtype=np.int32),
        "weights": np.ones(found.places, np.float32),
    }
    apart = {name: np.zeros((3, *value.shape), value.dtype) for name, value in packed.items()}
    begins = [0, 20, 27, 57]
    for row, (low, high) in enumerate(itertools.pairwise(begins)):
        for name in ("tokens", "positions"):
            apart[name][row, : high - low] = packed[name][low:high]
        apart["segments"][row, : high - low] = 1
        inside = (places >= low) & (places < high)
        for name in ("places", "targets", "weights"):
            apart[name][row, : inside.sum()] = packed[name][inside] - (low if name == "places" else 0)
    packed = {name: np.stack([value, 0 * value, 0 * value]) for name, value in packed.items()}
    params, run = draw(found, packed), value_and_grad(found)
    (one, sums), slope = run(params, packed)
    (other, others), slopes = run(params, apart)
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    assert float(sums["accuracy"][0]) == float(others["accuracy"][0])
    compare(slope, slopes)


def test_rows_of_no_weight_change_nothing():
    """Those that fill up an evaluation's last batch."""
    found = objective("bert")
    rows = batch(found, 2)
    filled = {name: np.concatenate([value, np.zeros_like(value)]) for name, value in rows.items()}
    twice = {name: np.concatenate([value, value]) for name, value in rows.items()}
    params, run = draw(found, rows), value_and_grad(found)
    (total, sums), gradient = run(params, twice)
    (same, others), again = run(params, filled)
    assert float(total) == pytest.approx(float(same), rel=1e-6)
    for name, pair in sums.items():
        np.testing.assert_allclose(np.array(others[name]) * 2, pair, rtol=1e-6)
    compare(again, gradient)


def test_guesses_are_those_that_the_loss_counts():
    found = objective("bert")
    rows = batch(found)
    params = draw(found, rows)
    guesses = jax.jit(found.predict)(params, rows)
    (_, sums), _ = value_and_grad(found)(params, rows)
    assert float(sums["accuracy"][0]) == ((guesses["guess"] == rows["targets"]) * rows["weights"]).sum()
    assert float(sums["pair_accuracy"][0]) == (guesses["pair_guess"] == rows["pair"]).sum()


# -- for people --------------------------------------------------------------------------------------------------------


def test_show():
    found = objective("bert", length=16)
    example = {
        "tokens": np.array([CLS, 10, MASK, 60, SEP, 7, 33, SEP] + [PAD] * 8, np.int32),
        "segments": np.repeat([1, 0], 8).astype(np.int32),
        "places": np.array([2, 5, 6], np.int32),
        "targets": np.array([20, 7, 8], np.int32),
        "weights": np.ones(3, np.float32),
        "pair": np.int32(1),
        "pair_weights": np.float32(1),
    }
    guess = {"guess": np.array([20, 21, 22]), "pair_guess": np.int32(0)}
    assert found.show(TOKENIZER, example, guess).splitlines() == [
        "read: ____ masked, . left as it was, else another token; guess: = right",
        "pair: B is from elsewhere; guess: B follows A",
        "text   [95] w10 w20w60 [96] w7  w8  [96]",
        "read            ___         .   w33",
        "guess           =           w21 w22",
    ]


def test_columns_of_chinese():
    """A character takes two columns; words stand apart, characters within them together."""
    text = list("中国经济的发展abc")
    shown = columns({"text": text, "read": ["", "", "__", "__"] + [""] * 6}, [1, 0, 1, 0, 1, 1, 0, 1, 0, 0])
    assert shown.splitlines() == ["text  中国 经济 的 发展 abc", "read       ____"]
    assert display_width("中a") == 3
    assert objective("wwm").show(TOKENIZER, next(rows(objective("wwm"), 1))).count("text ") >= 1
    long = columns({"text": text * 30}, None, width=40).splitlines()
    assert max(map(display_width, long)) <= 40
    assert columns({"text": []}) == ""


def test_a_run_goes_on_with_its_tables():
    """What `resolve` found is no part of the config that a run compares with its own."""
    one, other = (objective("bert") for _ in range(2))
    assert changes(one, other) == []
    assert changes(one, objective("bert", rate=0.2)) == ["rate: 0.15 -> 0.2"]


def test_a_corpus_of_one_document_is_told_that_pairs_mean_nothing(capsys):
    lone = SimpleNamespace(train=((1.0, SimpleNamespace(documents=1)),))
    assert objective("bert").study(lone) == objective("bert")
    assert "the corpus has one document" in capsys.readouterr().out
