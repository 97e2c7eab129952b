"""Tags of words: where they are asked for, windows of long sentences, the random field on packed rows."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.config import from_json, load, to_json
from lm.data.corpus.corpus import Corpus
from lm.data.corpus.prepare import prepare
from lm.data.labelled.columns import Columns
from lm.data.rows.templates import Frame
from lm.data.types import Example, ExampleSet
from lm.errors import UserError
from lm.models.crf import Places, log_partition, path_score
from lm.objectives.base import resolve
from lm.objectives.finetune.network import Rows
from lm.objectives.tag import Tag
from lm.sharding import unbox
from tests.data.test_framing import KINDS, TEXT
from tests.marks import quick
from tests.models.test_crf import by_hand, every
from tests.objectives.labelled import WORDS, model, words

LABELS = ("O", "B-X", "I-X")


def ready(tokenizer=None, **fields) -> Tag:
    fields = {"model": model(vocab=500), "labels": LABELS, "rows": Rows(length=24, row=48), **fields}
    return Tag(**fields, frame=Frame(tokenizer or words(), "bert"))


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


@pytest.mark.parametrize("crf", quick([False, True], [True]))
def test_the_loss_is_that_of_each_sentence_alone(crf):
    objective = ready(crf=crf, forbid="never")
    examples = [sentence(n, seed) for seed, n in enumerate((3, 7, 1, 9))]
    packed = objective.corrupt(None, {"examples": [(one, 0) for one in examples], "room": 20})
    batch = {name: x[None] for name, x in packed.items()}
    params = unbox(jax.jit(objective.init)(jax.random.key(1), batch))
    params["classifier"]["kernel"] += np.random.default_rng(0).normal(size=params["classifier"]["kernel"].shape)
    sums, _ = jax.jit(objective.loss)(params, batch, None, None)
    total, hits, guesses = 0.0, 0.0, []
    for one in examples:
        alone = {name: x[None] for name, x in objective.corrupt(None, {"examples": [(one, 0)], "room": 9}).items()}
        logits = np.asarray(jax.jit(objective.logits)(params, alone))[0, : len(one.values["words"])]
        gold = objective.targets(one)
        if crf:
            weights = objective.chain(params, "training")
            at = np.arange(len(gold))[None]
            places = Places(at >= 0, at == 0, at == 0, at == len(gold) - 1)
            one_sum = log_partition(logits[None], places, weights) - path_score(logits[None], gold[None], places, weights)
            total += float(one_sum[0])
        else:
            log = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
            total -= log[np.arange(len(gold)), gold].sum()
        guesses.append(np.asarray(jax.jit(objective.predict)(params, alone)["guess"])[0, : len(gold)])
        hits += (guesses[-1] == gold).sum()
    np.testing.assert_allclose(sums["loss"][0], total, rtol=1e-4)
    np.testing.assert_allclose(sums["accuracy"][0], hits)
    found = jax.device_get(jax.jit(objective.predict)(params, batch))
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


# -- long sentences under a random field -----------------------------------------------------------------------------------


def told(tags: str, where: str = "here:1") -> Example:
    """A sentence with these tags, parted by spaces."""
    tags = tags.split()
    return Example({"words": [WORDS[i % 10] for i in range(len(tags))], "tags": tags}, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sure(Tag):
    """Emissions that are sure of the tags of the examples."""

    def logits(self, params, batch, keys_B=None):
        return 20.0 * jax.nn.one_hot(batch["targets"], len(self.labels))


def laid(objective, example, room: int = 48):
    """A record of all windows of a sentence, out of order, and its batch: one row for each window."""
    parts = [(example, part) for part in range(len(objective.lay(example)))]
    records = [{"examples": [one], "room": room} for one in parts[1:] + parts[:1]]
    rows = [objective.corrupt(None, record) for record in records]
    return records, {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def decoded(objective, params, example) -> tuple[list[str], list[str]]:
    """The tags of a sentence as `merge` gives them, and those that its windows have by themselves."""
    records, batch = laid(objective, example)
    found = jax.device_get(jax.jit(objective.predict)(params, batch))
    parts = [
        one
        for row, record in enumerate(records)
        for one in objective.outcomes(record, {name: x[row] for name, x in found.items()})
    ]
    alone = sorted((k, tag) for part in parts for k, tag in zip(part["words"], part["guess"]))
    return objective.merge(parts), [tag for _, tag in alone]


LONG = {
    "IOB2": "O O B-X " + 33 * "I-X " + "O B-X O O",
    "IOB1": "O O I-X " + 33 * "I-X " + "B-X O I-X O",
    "IOBES": "O O B-X " + 32 * "I-X " + "E-X O S-X O O",
}


@pytest.mark.parametrize("forbid", ["decoding", "always"])
@pytest.mark.parametrize("scheme", LONG)
def test_an_entity_longer_than_a_window_is_found_and_costs_nothing(scheme, forbid):
    """Sure of every word, all are right: where a sentence was cut nothing is forbidden, and nothing opens or closes."""
    example = told(LONG[scheme])
    labels = tuple(sorted(set(example.values["tags"]), reverse=True))
    objective = Sure(model=model(vocab=500), labels=labels, rows=Rows(length=12, row=48), crf=True, forbid=forbid,
                     scheme=scheme, frame=Frame(words(), "bert"))  # fmt: skip
    _, batch = laid(objective, example)
    assert len(batch["tokens"]) >= 5
    params = unbox(jax.jit(objective.init)(jax.random.key(0), batch))
    params["crf"] = jax.tree.map(np.zeros_like, params["crf"])
    params["crf"] |= {name: np.array([-50.0 if one == "I-X" else 0.0 for one in labels]) for name in ("start", "end")}
    merged, alone = decoded(objective, params, example)
    assert merged == alone == example.values["tags"]
    sums, _ = jax.jit(objective.loss)(params, batch, None, None)
    assert float(sums["loss"][0]) < 1
    assert float(sums["accuracy"][0]) == 40


@pytest.mark.parametrize("forbid", quick(["never", "decoding", "always"], ["decoding"]))
def test_a_sentence_in_windows_is_decoded_as_one(forbid):
    """Of all taggings of the whole sentence the best; the loss is that of the windows' own words, cut out of it."""
    objective = ready(rows=Rows(length=7, row=14), overlap=2, crf=True, forbid=forbid, scheme="IOB2")
    rng, differ = np.random.default_rng(0), 0
    for seed in range(6):
        example = told("O B-X I-X I-X I-X I-X O O")
        example.values["words"] = sentence(8, seed).values["words"]
        _, batch = laid(objective, example, 10)
        assert len(batch["tokens"]) > 1
        params = unbox(jax.jit(objective.init)(jax.random.key(seed), batch))
        params["classifier"]["kernel"] += 2 * rng.normal(size=params["classifier"]["kernel"].shape)
        params["crf"] = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in params["crf"].items()}
        gold, cuts, scores = objective.targets(example), [], np.zeros((8, 3))
        logits = np.asarray(jax.jit(objective.logits)(params, batch))
        owns = [own for _, own, _ in objective.lay(example)]
        for own, row in zip(owns[1:] + owns[:1], logits):
            scores[own] = row[: len(own)]
            cuts.append((own, own[0] == 0, own[-1] == 7))
        bounded = [np.asarray(x) for x in objective.chain(params, "decoding")]
        whole = every(scores, bounded)
        merged, alone = decoded(objective, params, example)
        assert merged == [LABELS[tag] for tag in max(whole, key=whole.get)]
        differ += merged != alone
        weights, total = [np.asarray(x) for x in objective.chain(params, "training")], 0.0
        for own, *edges in cuts:
            total += np.logaddexp.reduce(list(every(scores[own], weights, *edges).values()))
            total -= by_hand(scores[own], weights, gold[own], *edges)
        np.testing.assert_allclose(jax.jit(objective.loss)(params, batch, None, None)[0]["loss"][0], total, rtol=1e-4)
    assert differ  # windows alone are not enough


# -- the scheme of the tags ------------------------------------------------------------------------------------------------


def studied(train: list[Example], held_out: tuple[Example, ...] = (), **fields) -> Tag:
    """A tagger that has seen these examples."""
    corpus = Corpus(words(), ((1.0, ExampleSet("here", train)),), ExampleSet("there", list(held_out)), "x", 0, "", None)
    return ready(labels=(), crf=True, **fields).study(corpus)


def many(tags: str, count: int = 30) -> list[Example]:
    return [told(tags, f"here:{k}") for k in range(count)]


IOB1 = "I-ORG O I-PER I-PER B-PER O"


@pytest.mark.parametrize(
    ("tags", "scheme", "odd"),
    [
        (IOB1, "IOB1", "O B-PER"),
        ("B-ORG O B-PER I-PER O O", "IOB2", "O I-PER"),
        ("S-ORG O B-PER E-PER O O", "IOBES", "O E-PER O"),
        ("U-ORG O B-PER L-PER O O", "IOBES", "B-ORG O"),
    ],
)
def test_tags_of_every_scheme_are_decoded(tags, scheme, odd, capsys):
    """CoNLL-2003's own files are IOB1: sure of every word, all are right. What breaks the scheme is never found."""
    objective, example = studied(many(tags) + many(odd, 1)), told(tags)
    assert objective.scheme == scheme
    sure = Sure(**{f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)})
    _, batch = laid(sure, example, 6)
    params = unbox(sure.init(jax.random.key(0), batch))
    assert decoded(sure, params, example)[0] == example.values["tags"]
    wrong = told(odd)
    assert decoded(sure, params, wrong)[0] != wrong.values["tags"]
    assert f"is not {scheme}, as in 1 of 31 sentences; decoding gives no such tags" in capsys.readouterr().out


def test_the_scheme_is_kept_with_the_config_and_older_runs_find_it_anew():
    config = load("tests/configs/tiny_tag.py")
    config, corpus = resolve(config, prepare(config.data))
    text = to_json(config)
    assert '"scheme": "IOB2"' in text
    assert from_json(text).objective == config.objective
    older = from_json(text.replace('"scheme": "IOB2",\n', ""))
    assert older.objective.scheme == "auto"
    assert resolve(older, corpus)[0].objective == config.objective
    assert load("tests/configs/tiny_tag.py:crf=no").objective.scheme == "auto"


def test_a_scheme_that_was_found_stays(capsys):
    """Of other examples of the same tags, too, and without saying it again."""
    objective = studied(many("B-X O"), scheme="IOB1", forbid="decoding")
    assert objective.scheme == "IOB1"
    assert studied(many("B-X O B-X I-X"), scheme="none", forbid="always").scheme == "none"
    assert not capsys.readouterr().out


def test_slips_of_a_few_are_said_or_refused(capsys):
    """Where one of a hundred sentences breaks the scheme it is the scheme still; "always" would price it at 1e4."""
    train = [*many("O B-X I-X O", 60), told("O O I-X", "tweets.conll:341")]
    line = "tweets.conll:341: I-X after O at word 3 is not IOB2, as in 1 of 61 sentences; "
    assert studied(train).scheme == "IOB2"
    assert capsys.readouterr().out == line + "decoding gives no such tags: objective.forbid=never\n"
    with pytest.raises(UserError, match=line + "mend the tags, or set objective.forbid=decoding"):
        studied(train, forbid="always")
    with pytest.raises(UserError, match=r"held\.conll:7: I-X first is not IOB2"):
        studied(train[:-1], (told("I-X O", "held.conll:7"),), forbid="always")
    assert studied(train[:-1], (told("I-X O", "held.conll:7"),)).scheme == "IOB2"
    assert studied(train, forbid="never").scheme == "auto"
    assert not capsys.readouterr().out


def test_where_no_scheme_fits_nothing_is_forbidden(capsys):
    train = [*many("O B-X I-X O", 20), *many("O I-X I-X O", 20)]
    found = studied(train)
    assert found.scheme == "none"
    said = capsys.readouterr().out
    assert said.startswith("here:0: I-X after O at word 2 is not IOB2, as in 20 of 40 sentences; no scheme fits better, so")
    params = unbox(found.init(jax.random.key(0), laid(found, train[0])[1]))
    assert max(float(np.abs(x).max()) for x in found.chain(params, "decoding")) < 1
    with pytest.raises(UserError, match="here:0: I-X after O"):
        studied(train, forbid="always")
    assert studied(many("DET NOUN", 3), forbid="always").scheme == "none"
    assert not capsys.readouterr().out


def test_the_file_of_a_scheme_is_named(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("one B-X\ntwo O\n\n" * 40 + "one O\ntwo I-X\n")
    with pytest.raises(UserError, match=r"a\.conll:121: I-X after O at word 2 is not IOB2"):
        studied(list(Columns(path=str(path)).open()), forbid="always")


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
