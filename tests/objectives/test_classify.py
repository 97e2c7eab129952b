"""Labels of texts: what is asked, what it costs, what is refused, and a run on another run's network."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import load
from lm.convert.runs import write_run
from lm.data.corpus.corpus import Corpus
from lm.data.corpus.prepare import prepare
from lm.data.rows.templates import Frame
from lm.data.types import Example, ExampleSet
from lm.errors import UserError
from lm.models.pooling import Scores
from lm.objectives.base import resolve, training_batches
from lm.objectives.classify import Classify
from lm.objectives.finetune import network as trunk
from lm.objectives.finetune.network import Head, Rows
from lm.sharding import unbox
from lm.start.begin import begin, relabelled
from lm.training import parameters
from lm.training.parameters import alike
from lm.training.state import abstract_state, initialise
from tests.objectives.labelled import model, words
from tests.processes import command
from tests.test_optimizer import one_device

torch = pytest.importorskip("torch")


def corpus(train, validation=()):
    sides = [[Example(values, f"{name}.csv:{i + 2}") for i, values in enumerate(side)]
             for name, side in (("train", train), ("held", validation))]  # fmt: skip
    sets = [ExampleSet(name, side) for name, side in zip(("train", "held"), sides)]
    return Corpus(words(), ((1.0, sets[0]),), sets[1], "x", 0, "", None)


def ready(train, validation=(), **fields):
    fields = {"model": model(vocab=0), "rows": Rows(length=16), **fields}
    found = corpus(train, validation)
    return Classify(**fields).resolve(found.tokenizer).study(found), found


ROWS = [{"text": text, "label": label} for text, label in
        (("one two", "a"), ("three", "b"), ("four five six", "a"), ("seven", "c"), ("eight nine", "a"))]  # fmt: skip


def test_labels_are_found_in_the_training_examples():
    objective, _ = ready(ROWS, balanced=True)
    assert objective.labels == ("a", "b", "c")
    np.testing.assert_allclose(objective.class_weights, [5 / 9, 5 / 3, 5 / 3], rtol=1e-5)  # scikit-learn's "balanced"


def test_a_label_of_held_out_examples_alone_is_refused_or_counts_nothing():
    unseen = [{"text": "ten", "label": "z"}]
    with pytest.raises(UserError) as error:
        ready(ROWS, unseen)
    for part in ("held.csv:2", "'z'", "a, b, c", "objective.unknown=skip"):
        assert part in str(error.value)
    objective, found = ready(ROWS, unseen, unknown="skip")
    row = objective.corrupt(None, {"examples": [(found.validation.examples[0], 0)], "room": 1})
    assert row["weights"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("values", "fields", "message"),
    [
        ({"text": "one"}, {}, "train.csv:7: no 'label'; it has text"),
        ({"text": "one", "label": ""}, {}, "train.csv:7: 'label' is empty"),
        ({"text": 3, "label": "a"}, {}, "train.csv:7: 'text' is int, not str"),
        ({"text": "one", "label": "a"}, {"kind": "number"}, "train.csv:2: 'label' is 'a', not a number"),
        ({"text": "", "label": "a"}, {}, "train.csv:7: 'text' is empty; mend or remove the example"),
        ({"text": " \t\u3000", "label": "a"}, {}, "train.csv:7: 'text' is empty"),
        ({"text": "one", "label": ["a"]}, {}, "train.csv:7: a list of labels; set objective.kind=several"),
    ],
)
def test_mistakes_name_the_example(values, fields, message):
    with pytest.raises(UserError, match=message.replace("'", ".").replace("[", r"\[")):
        ready([*ROWS, values], **fields)


def test_held_out_texts_may_not_be_empty_either():
    pairs = [{**row, "other": "one"} for row in ROWS]
    with pytest.raises(UserError, match=r"held.csv:3: 'other' is empty"):
        ready(pairs, [pairs[0], {**pairs[1], "other": "\n"}], fields=("text", "other"))


@pytest.mark.parametrize("side", ["train", "held"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_text_that_the_tokenizer_drops_is_refused(side, causal):
    """Without a token of its own a decoder's example would be scored at the last one of its neighbour."""
    dropped = {"text": "\u200b", "label": "a"}
    rows, held = ([*ROWS, dropped], ROWS) if side == "train" else (ROWS, [*ROWS, dropped])

    def opened():
        objective, found = ready(rows, held, rows=Rows(length=16, causal=causal))
        return objective.records.open(found.validation)

    with pytest.raises(UserError, match=rf"{side}.csv:7: the tokenizer leaves nothing of 'text', '\\u200b'; mend"):
        opened()


@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), float("-inf"), "1e39", 10**400, "x"], ids=lambda v: str(v)[:4])
def test_numbers_that_nobody_can_learn_are_refused(value):
    numbers = [{**row, "label": 1.0} for row in ROWS]
    odd = {"text": "one", "label": value}
    for sides, where in ((([*numbers, odd],), "train.csv:7"), ((numbers, [odd]), "held.csv:2")):
        with pytest.raises(UserError, match=f"{where}: 'label' is .*, not a number to learn; mend it"):
            ready(*sides, kind="number")


def test_labels_listed_twice_are_refused():
    with pytest.raises(UserError, match=r"labels=\('a', 'b', 'a'\): 'a' is listed twice"):
        Classify(model=model(), labels=("a", "b", "a"))


def test_one_label_is_nothing_to_tell_apart():
    with pytest.raises(UserError, match="nothing to tell apart"):
        ready(ROWS[:1])


def batch_and_logits(objective, found):
    examples = found.train[0][1].examples
    halves = [[(one, 0) for one in part] for part in (examples[:2], examples[2:])]
    rows = [objective.corrupt(None, {"examples": half, "room": 3}) for half in halves]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    params = unbox(objective.init(jax.random.key(0), batch))
    params["classifier"]["kernel"] += np.random.default_rng(0).normal(size=params["classifier"]["kernel"].shape)
    logits = np.asarray(objective.logits(params, batch))
    real = batch["weights"] > 0
    return batch, params, torch.tensor(logits[real]), real


@pytest.mark.parametrize("fields", [{}, {"smoothing": 0.2}, {"class_weights": (0.5, 2.0, 1.0)}], ids=str)
def test_the_loss_of_one_label_is_torchs(fields):
    objective, found = ready(ROWS, **fields)
    batch, params, logits, real = batch_and_logits(objective, found)
    weights = torch.tensor(fields["class_weights"]) if "class_weights" in fields else None
    loss = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=fields.get("smoothing", 0.0))
    expected = float(loss(logits, torch.tensor(batch["targets"][real]).long()))
    sums, _ = objective.loss(params, batch, None, None)
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], expected, rtol=1e-5)
    hits = (logits.numpy().argmax(-1) == batch["targets"][real]).mean()
    np.testing.assert_allclose(sums["accuracy"][0] / sums["accuracy"][1], hits, rtol=1e-6)


def test_the_loss_of_several_labels_is_torchs_and_f1_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    several = [{**row, "label": labels} for row, labels in zip(ROWS, (["a", "b"], "a", ["c"], [], "b,c"))]
    objective, found = ready(several, kind="several")
    assert objective.labels == ("a", "b", "c")
    batch, params, logits, real = batch_and_logits(objective, found)
    gold = batch["targets"][real]
    expected = float(torch.nn.BCEWithLogitsLoss()(logits, torch.tensor(gold)))
    sums, _ = objective.loss(params, batch, None, None)
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], expected, rtol=1e-5)
    guess = (logits > 0).numpy()
    np.testing.assert_allclose(sums["f1"][0] / sums["f1"][1], sklearn.f1_score(gold, guess, average="micro"), rtol=1e-5)
    np.testing.assert_allclose(sums["exact"][0] / sums["exact"][1], sklearn.accuracy_score(gold, guess), rtol=1e-5)


def test_numbers_cost_their_squared_error():
    numbers = [{**row, "label": i / 2} for i, row in enumerate(ROWS)]
    objective, found = ready(numbers, kind="number")
    batch, params, logits, real = batch_and_logits(objective, found)
    expected = float(torch.nn.MSELoss()(logits[:, 0], torch.tensor(batch["targets"][real])))
    sums, _ = objective.loss(params, batch, None, None)
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("keep", "expected"), [("start", "one two three"), ("end", "six seven eight"), ("both", "one seven eight")]
)
def test_long_texts_keep_what_is_asked(keep, expected):
    text = "one two three four five six seven eight"
    objective, found = ready([{"text": text, "label": "a"}, {"text": "one", "label": "b"}], keep=keep, rows=Rows(length=5))
    laid = objective.lay(found.train[0][1].examples[0])[0].tokens
    np.testing.assert_array_equal(laid[1:-1], found.tokenizer.encode(expected))


def test_pooled_states_are_those_of_the_right_tokens():
    """First, last and mean, of two texts in a row with padding behind."""
    objective, found = ready(ROWS)
    batch, params, *_ = batch_and_logits(objective, found)
    h_BTD = trunk.states(objective.model, params, batch, None, False)
    first = np.asarray(trunk.pooled(h_BTD, batch, "first"))
    segments = batch["segments"]
    for pool in ("first", "last", "mean"):
        head = dataclasses.replace(objective, head=Head(pool=pool), frame=objective.frame)
        rows = [head.corrupt(None, {"examples": [(one, 0) for one in found.train[0][1].examples[2:]], "room": 3})]
        places = np.stack([row["places"] for row in rows])
        values = np.asarray(trunk.pooled(h_BTD[1:], {**{k: v[1:] for k, v in batch.items()}, "places": places}, pool))
        for k in range(3):
            own = np.flatnonzero(segments[1] == k + 1)
            expected = {"first": h_BTD[1, own[0]], "last": h_BTD[1, own[-1]], "mean": h_BTD[1, own].mean(0)}[pool]
            np.testing.assert_allclose(values[0, k], expected, rtol=1e-4, atol=1e-5)
    assert first.shape[2] == objective.model.width


@pytest.mark.parametrize("trunk_", ["encoder", "decoder", "pair", "xlnet"])
@pytest.mark.parametrize("kind", ["several", "number"])
def test_rows_of_every_network_are_read(trunk_, kind):
    config = load(f"tests/configs/tiny_classify.py:kind={kind},trunk={trunk_}")
    config, found = resolve(config, prepare(config.data))
    batch = training_batches(config, found)[0]
    stream = config.objective.records.open(found.train[0][1])
    examples = [example for n in range(stream.count) for example, _ in stream.held_out(None, n)["examples"]]
    assert sorted(e.where for e in examples) == sorted(e.where for e in found.train[0][1].examples)
    row = {name: x[0] for name, x in batch.items()}
    assert config.objective.show(found.tokenizer, row).count("label") == np.count_nonzero(row["weights"])


def test_epochs_pack_anew_and_hold_every_example_once():
    config = load("tests/configs/tiny_classify.py")
    config, found = resolve(config, prepare(config.data))
    stream = config.objective.records.open(found.train[0][1], seed=3)
    epochs = []
    for epoch in range(3):
        rows = [stream.record(None, stream.at(n, epoch))["examples"] for n in range(stream.count)]
        wheres = [[e.where for e, _ in row] for row in rows]
        assert sorted(where for row in wheres for where in row) == sorted(e.where for e in found.train[0][1].examples)
        assert all(sum(config.objective.sizes(e)[0][0] for e, _ in row) <= config.objective.row for row in rows)
        epochs.append(wheres)
    assert epochs[0] != epochs[1] != epochs[2]
    again = config.objective.records.open(found.train[0][1], seed=3)
    assert [e.where for e, _ in again.record(None, again.at(0, 2))["examples"]] == epochs[2][0]


def test_running_text_is_refused():
    config = load("configs/classify_nano.py")
    masked = load("tests/configs/tiny_masked.py")
    with pytest.raises(UserError, match="labelled examples, not running text"):
        resolve(type(config)(objective=config.objective, data=masked.data), prepare(masked.data))


def test_a_head_on_the_network_of_another_run(tmp_path):
    """Masked first, then labels: the network is taken, its head is left, a new one is drawn, and all is said."""

    def run(*args):
        return command("lm.main", *args)

    first = run("--config=tests/configs/tiny_masked.py", f"--workdir={tmp_path / 'masked'}")
    assert first.returncode == 0, first.stderr
    shape = ("context=48", "placement=post", "embed_norm=true", "activation=gelu")
    network = [f"--config.objective.model.{field}" for field in shape]
    more = f"--workdir={tmp_path / 'labels'}", f"--config.start={tmp_path / 'masked'}", "--config.every.sample=3"
    second = run("--config=tests/configs/tiny_classify.py", *network, *more)
    assert second.returncode == 0, second.stderr
    assert "started from" in second.stdout
    assert "drawn anew: classifier/bias, classifier/kernel" in second.stdout
    assert "head_bias" in second.stdout
    summary = json.loads((tmp_path / "labels" / "summary.json").read_text())
    assert 0 <= summary["eval/validation/accuracy"] <= 1
    assert "guess" in (tmp_path / "labels" / "samples" / "3.txt").read_text(encoding="utf-8")


def test_one_example_is_held_out():
    train = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert [corpus(train, train[:n]).holds_out for n in (0, 1, 2)] == [False, True, True]


def test_numbers_of_a_head_are_float32():
    """1987.3 lies between two numbers of bfloat16, 1984 and 1992."""
    for inner in ("none", "dense"):
        head = Scores(width=4, outputs=1, inner=inner)
        states = jnp.ones((1, 1, 4), jnp.bfloat16)
        params = jax.tree.map(jnp.zeros_like, unbox(head.init(jax.random.key(0), states)["params"]))
        last = params["classifier"]["out"] if inner == "dense" else params["classifier"]
        last["bias"] = last["bias"] + 1987.3
        assert float(head.apply({"params": params}, states)[0, 0, 0]) == pytest.approx(1987.3)


@pytest.mark.parametrize(("labels", "kept"), [(("neg", "pos"), True), (("cat", "dog"), False), (("cat", "dog", "emu"), False)])
def test_scores_of_other_labels_are_drawn_anew(labels, kept, tmp_path):
    """From one classifier to the next: the network comes along, the scores only where they are of the same labels."""
    config = load("tests/configs/tiny_classify.py")
    config, found = resolve(config, prepare(config.data))
    rows, mesh = training_batches(config, found)[0], one_device()

    def of(labels):
        objective = dataclasses.replace(config.objective, labels=labels, frame=config.objective.frame)
        return dataclasses.replace(config, objective=objective, start=str(tmp_path))

    theirs = jax.jit(lambda key: unbox(of(("neg", "pos")).objective.init(key, rows)))(jax.random.key(7))
    write_run(of(("neg", "pos")), theirs, found.tokenizer, tmp_path)
    with jax.set_mesh(mesh):
        abstract = abstract_state(of(labels), rows, mesh)
        fresh = initialise(of(labels), rows, abstract)
        state, lines = begin(of(labels), jax.tree.map(jnp.copy, fresh), abstract)
    mine, drawn, theirs = (parameters.flat(tree) for tree in (state.params, fresh.params, theirs))
    for path, x in mine.items():
        source = theirs if kept or not path.startswith("classifier/") else drawn
        np.testing.assert_array_equal(x, source[path], err_msg=path)
    assert ("drawn anew: classifier/bias, classifier/kernel" in lines) == (not kept)


def test_each_task_has_labels_of_its_own():
    config = load("tests/configs/tiny_tasks.py")
    ours = resolve(config, prepare(config.data))[0].objective
    name = ours.parts[0].name
    parts = (dataclasses.replace(ours.parts[0], objective=dataclasses.replace(ours.parts[0].objective, labels=("x",))),)
    other = relabelled(ours, dataclasses.replace(ours, parts=(*parts, *ours.parts[1:])))
    assert other(f"{name}/classifier/kernel")
    assert not other(f"{ours.parts[1].name}/classifier/kernel")
    assert not other("trunk/stack/layers/mlp/up/kernel")
    assert alike((("neg", "pos"), "one"), (("LABEL_0", "LABEL_1"), "one"))
    assert not alike((("neg", "pos"), "one"), (("LABEL_0", "LABEL_1"), "several"))
    assert not alike((("neg", "pos"), "one"), (("LABEL_0",), "one"))


@pytest.mark.slow
def test_a_head_on_a_published_network(tmp_path):
    """The config names a folder: network and tokenizer are its own, the head is new."""
    transformers = pytest.importorskip("transformers")
    from lm.data.labelled.files import Labelled
    from lm.data.tokenizer.tokenizer import WordPiece

    texts = [e.values["text"] for e in Labelled(path="tests/configs/reviews.csv").open()]
    tokenizer = WordPiece(vocab=300).build(lambda: texts)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    bert = transformers.BertConfig(vocab_size=tokenizer.vocab, max_position_embeddings=64, **shape)
    transformers.BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    tokenizer.save(tmp_path / "bert" / "tokenizer.json")
    spec = f"configs/classify_nano.py:text=tests/configs/reviews.csv,start={tmp_path / 'bert'},steps=2"
    done = command("lm.main", f"--config={spec}", f"--workdir={tmp_path / 'run'}", "--config.batch=8")
    assert done.returncode == 0, done.stderr
    assert "drawn anew: classifier/bias, classifier/kernel, pooler/dense" in done.stdout
    assert "left out: head_bias" in done.stdout


def test_frames_differ_by_network():
    tokenizer = words(("<s>", "</s>"))
    assert trunk.frame(model(), Rows(), words()).style == "bert"
    assert trunk.frame(model(), Rows(causal=True), words()).style == "decoder"
    assert Frame(tokenizer, "decoder").join([np.array([5, 6])], 9).tokens.tolist() == [5, 6]
