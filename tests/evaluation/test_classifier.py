"""A classifier asked for texts: the same probabilities as in packed rows, and its tasks under noise and attack."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm.config import load
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.evaluation.classifier import Attacked, Calibrated, Classifier, Disturbed, Paraphrased, Shifted
from lm.evaluation.files import read_examples
from lm.evaluation.registry import named
from lm.evaluation.subject import Subject
from lm.objectives.base import resolve, training_batches
from lm.sharding import unbox


@pytest.fixture(scope="module")
def subject():
    config = load("tests/configs/tiny_classify.py:dropout=0")
    config, corpus = resolve(config, prepare(config.data))
    batch = training_batches(config, corpus)[0]
    params = unbox(config.objective.init(jax.random.key(3), batch))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    return Subject(config, params, corpus.tokenizer), corpus, batch


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def examples(subject, tmp_path):
    _, corpus, _ = subject
    found = [example for _, side in corpus.train for example in side.examples]
    rows = [{"text": e.values["text"], "label": e.values["label"]} for e in found]
    return write(tmp_path / "e.jsonl", rows), rows


def test_probabilities_do_not_depend_on_rows(subject, examples):
    under, _corpus, batch = subject
    ask, (path, _rows) = Classifier(under), examples
    alone = ask(read_examples(path))
    np.testing.assert_allclose(alone.sum(1), 1, atol=1e-5)
    few = Subject(under.config, under.params, under.tokenizer, tokens=1)
    np.testing.assert_allclose(Classifier(few)(read_examples(path)), alone, atol=2e-5)
    packed = np.asarray(jax.jit(under.objective.predict)(under.params, batch)["probabilities"])
    packed = packed[batch["weights"] > 0]
    nearest = np.abs(packed[:, None] - alone[None]).max(-1).min(1)
    assert nearest.max() < 2e-5


def test_noise_paraphrase_and_shares(subject, examples, tmp_path):
    under, _, _ = subject
    path, rows = examples
    truth = [under.objective.labels.index(row["label"]) for row in rows]
    right = (Classifier(under)(read_examples(path)).argmax(1) == truth).mean()
    found = Disturbed(path=path, how="drop_letters", rate=0.5).measure(under)
    assert found["clean"].value == pytest.approx(right)
    same = write(tmp_path / "s.jsonl", [{**row, "paraphrase": row["text"]} for row in rows])
    assert Paraphrased(path=same).measure(under)["same_prediction"].value == 1
    counts = np.bincount(truth, minlength=len(under.objective.labels)) / len(truth)
    assert Shifted(path=path, prior=tuple(counts)).measure(under)["reweighted"].value == pytest.approx(right)


def test_temperature_scaling(subject, examples):
    under, path = subject[0], examples[0]
    found = Calibrated(path=path, fit=path).measure(under)
    assert found["temperature"].value > 0
    assert found["scaled/nll"].value <= found["raw/nll"].value  # fitted on the same examples
    assert found["scaled/accuracy"].value == found["raw/accuracy"].value
    with pytest.raises(UserError, match="fit=FILE"):
        Calibrated(path=path).measure(under)


def test_attacks_only_take_away(subject, examples, tmp_path):
    under, _, _ = subject
    table = {word.lower(): ["zzz", "qqq"] for row in examples[1] for word in row["text"].split()}
    (tmp_path / "syn.json").write_text(json.dumps(table))
    found = Attacked(path=examples[0], synonyms=str(tmp_path / "syn.json")).measure(under)
    assert found["attacked"].value <= found["clean"].value
    with pytest.raises(UserError, match="synonyms=FILE"):
        Attacked(path=examples[0]).measure(under)
    (tmp_path / "syn.json").write_text("[1]")
    with pytest.raises(UserError, match="an object is needed, not a list"):
        Attacked(path=examples[0], synonyms=str(tmp_path / "syn.json")).measure(under)


def test_mistakes_are_told(subject, tmp_path):
    under, _, _ = subject
    path = write(tmp_path / "w.jsonl", [{"text": "a", "label": "unheard of"}])
    with pytest.raises(UserError, match=r"w.jsonl:1: label 'unheard of' is none of"):
        Disturbed(path=path).measure(under)
    assert named(f"shifted:{path}?prior=0.5,0.5") == {f"shifted:{path}?prior=0.5,0.5": Shifted(path=path, prior=(0.5, 0.5))}


def test_a_side_of_a_pair_is_attacked_beside_its_own_partner(tmp_path, monkeypatch):
    pairs = [{"premise": "a good film", "hypothesis": name, "label": "yes"} for name in ("first", "second")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "syn.json").write_text('{"good": ["bad"], "film": ["book"]}')
    seen = []

    class Stub:
        objective = SimpleNamespace(fields=("premise", "hypothesis"))

        def __init__(self, subject):
            pass

        def label_ids(self, examples):
            return [0] * len(examples)

        def __call__(self, examples):
            seen.extend((one.get("premise"), one.get("hypothesis")) for one in examples)
            return np.array([[0.2, 0.8] if "bad" in one.get("premise") else [0.8, 0.2] for one in examples])

    monkeypatch.setattr("lm.evaluation.classifier.Classifier", Stub)
    found = Attacked(path=str(tmp_path / "pairs.jsonl"), synonyms=str(tmp_path / "syn.json")).measure(None)
    assert (found["clean"].value, found["attacked"].value) == (1.0, 0.0)
    assert {partner for text, partner in seen if "bad" in text} == {"first", "second"}
