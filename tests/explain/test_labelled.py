"""Explanations of labels: beside finite differences, plain forward passes and brute force."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.explain.ablation import ablate
from lm.explain.contents import Options, contents
from lm.explain.labelled import decide, explain_labels, rows_of
from lm.explain.nearest import similar, training_examples
from lm.explain.page import page
from lm.sharding import unbox
from tests.marks import quick
from tests.objectives.labelled import prepared

QUESTION = {"question": "Who has two cats?", "context": "Tom has two cats, Max and Moritz."}
TEXTS = {"classify": "a fine film!", "tag": "Anna met Tom", "extract": json.dumps(QUESTION)}


@pytest.fixture(scope="module")
def runs():
    """Config, parameters and tokenizer of a classifier, a tagger with a CRF and a reader, with weights that say something."""
    made = {}
    for name in TEXTS:
        config, corpus, batch = prepared(f"tests/configs/tiny_{name}.py")
        shapes, rng = unbox(jax.eval_shape(config.objective.init, jax.random.key(0), batch)), np.random.default_rng(0)
        params = jax.tree_util.tree_map_with_path(
            lambda path, x, rng=rng: jax.numpy.asarray(rng.normal(path[-1].key == "scale", 0.15, x.shape), x.dtype), shapes
        )
        made[name] = config, params, corpus.tokenizer
    return made


@pytest.fixture(scope="module")
def found(runs):
    return {name: explain_labels(runs[name][0].objective, *runs[name][1:], TEXTS[name]) for name in TEXTS}


def score(objective, params, row, target, ids):
    """Of the declared scores, by a plain pass."""
    return float(objective.scored(params, row).scores_BPC[0, target, np.array(ids)].sum())


def with_table(params, table):
    return {**params, "embed": {"table": table}}


@pytest.mark.parametrize("name", TEXTS)
def test_attributions(name, runs, found):
    """Integrated gradients add up to the difference that a constant table makes; gradient x input is a derivative by a row."""
    config, params, tokenizer = runs[name]
    decision = decide(config.objective, params, tokenizer, TEXTS[name])
    table = np.asarray(params["embed"]["table"])
    mean = np.broadcast_to(table[: tokenizer.vocab].mean(0), table.shape)
    (tokens,) = decision.sides[0]
    for k, ids in list(enumerate(decision.chosen))[:2]:
        one = found[name]["predictions"][k]
        at = (decision.objective, params, decision.row, k, ids)
        text, base = score(*at), score(at[0], with_table(params, mean), *at[2:])
        assert one["score"] == pytest.approx(text, abs=1e-4)
        assert abs(text - base) > 0.02
        assert one["integrated"].difference == pytest.approx(text - base, abs=1e-4)
        assert one["integrated"].values.sum() == pytest.approx(text - base, rel=0.01)
        assert len(one["input"]) == len(found[name]["columns"]) == len(tokens)
        # A token that occurs once: the derivative by a factor on its row of the table.
        position = next(t for t in range(1, len(tokens)) if (tokens == tokens[t]).sum() == 1)
        step, scores = 1e-2, []
        for factor in (1 + step, 1 - step):
            scaled = table.copy()
            scaled[tokens[position]] *= factor
            scores.append(score(at[0], with_table(params, scaled), *at[2:]))
        assert one["input"][position] == pytest.approx((scores[0] - scores[1]) / 2 / step, abs=3e-3)


def test_decisions_are_the_predictions(runs, found):
    """The label of lm.predict: of a class the argmax, of a CRF the path of Viterbi, of a reader the merged answer."""
    config, params, tokenizer = runs["classify"]
    (row,) = rows_of(config.objective, decide(config.objective, params, tokenizer, TEXTS["classify"]).example)
    shares = np.asarray(config.objective.predict(params, row)["probabilities"][0, 0])
    (one,) = found["classify"]["predictions"]
    assert one["token"] == config.objective.labels[shares.argmax()]
    assert dict(one["top"]) == pytest.approx(dict(zip(config.objective.labels, shares.tolist())), abs=1e-5)
    other = explain_labels(config.objective, params, tokenizer, TEXTS["classify"], label=one["top"][1][0])["predictions"][0]
    assert (other["rank"], other["own"], other["token"]) == (2, False, one["top"][1][0])

    config, params, tokenizer = runs["tag"]
    decision = decide(config.objective, params, tokenizer, TEXTS["tag"])
    guess = np.asarray(config.objective.predict(params, decision.row)["guess"][0])
    assert [p["token"] for p in found["tag"]["predictions"]] == [config.objective.labels[i] for i in guess]
    # Bytes: a word begins with the space before it.
    assert [found["tag"]["columns"][p["column"]] for p in found["tag"]["predictions"]] == ["A", " ", " "]
    assert [p["word"] for p in found["tag"]["predictions"]] == TEXTS["tag"].split()

    config, params, tokenizer = runs["extract"]
    decision = decide(config.objective, params, tokenizer, TEXTS["extract"])
    objective, outputs = decision.objective, config.objective.predict(params, decision.row)
    record = {"examples": [(decision.example, 0)]}
    parts = objective.outcomes(record, {name: np.asarray(x[0]) for name, x in outputs.items()})
    assert found["extract"]["predictions"][0]["token"] in (objective.merge(decision.example, parts)["text"] or "(no answer)")


@pytest.mark.parametrize("name", quick(["classify", "tag"], ["tag"]))
def test_nearest_training_examples(name, runs):
    """Of states computed one example a row: the same cosines, and an example of the training set is nearest to itself."""
    config, params, tokenizer = runs[name]
    objective, examples = training_examples(config, tokenizer, None, 6)
    reads = objective.answers.reads
    own = [np.asarray(objective.scored(params, row).states_BPD[0]) for e in examples for row in rows_of(objective, e)]
    states_ND, query_PD = np.concatenate(own), own[0]
    cosines = states_ND @ query_PD.T / np.linalg.norm(states_ND, axis=1)[:, None] / np.linalg.norm(query_PD, axis=1)
    for k, nearest in enumerate(similar(objective, examples, params, query_PD, reads)):
        np.testing.assert_allclose([x["cosine"] for x in nearest], np.sort(cosines[:, k])[::-1][:5], atol=1e-4)
        assert nearest[0]["cosine"] == pytest.approx(1, abs=1e-4)
        assert nearest[0]["where"] == examples[0].where
        assert nearest[0]["label"] in objective.labels


def test_contents_and_ablation(runs):
    """The page holds all of it as JSON; ablation measures the predicted label's loss."""
    config, params, tokenizer = runs["classify"]
    whole = contents(runs["classify"], TEXTS["classify"], Options(training=5), Path("run"))
    assert len(whole["predictions"][0]["nearest"]) == 5
    assert any("first 5 training examples" in note for note in whole["notes"])
    assert whole["ablation"].loss == pytest.approx(-whole["predictions"][0]["logp"], abs=1e-5)
    kernel = params["stack"]["layers"]["attention"]["out"]["kernel"].at[1, 0].set(0)
    decision = decide(config.objective, params, tokenizer, TEXTS["classify"])
    changed = jax.tree_util.tree_map_with_path(
        lambda path, x: kernel if [p.key for p in path][-4:] == ["layers", "attention", "out", "kernel"] else x, params
    )
    log_p = jax.nn.log_softmax(config.objective.scored(changed, decision.row).scores_BPC[0, 0])[decision.chosen[0][0]]
    assert whole["ablation"].heads["attention"][1, 0] == pytest.approx(-float(log_p) - whole["ablation"].loss, abs=1e-5)
    assert "Nearest training examples" in page(whole)
    reader = ablate(runs["extract"][0].objective, *runs["extract"][1:], TEXTS["extract"], neurons=0)
    assert reader.heads["attention"].shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "text", "options", "said"),
    [
        ("classify", "a", {"label": "goood"}, "label 'goood'"),
        ("classify", "{bad", {}, "no JSON object"),
        ("extract", "a", {}, "reads several values"),
        ("extract", '{"question": "a"}', {}, "no 'context'"),
        ("extract", TEXTS["extract"], {"label": "x"}, "has no labels"),
        ("classify", "a", {"task": "x"}, "one task"),
        ("classify", "a", {"target": "x"}, "encoder-decoders"),
        ("tag", "a b", {"attribute": "3"}, "2 predictions"),
    ],
)
def test_mistakes_are_lines(name, text, options, said, runs):
    with pytest.raises(UserError, match=said):
        contents(runs[name], text, Options(**options), Path("run"))
