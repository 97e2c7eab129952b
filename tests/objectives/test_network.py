"""Heads on pre-trained networks: the same scores as transformers' models of each family and task."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.convert.convert import flat, load
from lm.data.rows.templates import Frame
from lm.data.types import Example
from lm.objectives.choice import Choose
from lm.objectives.classify import Classify
from lm.objectives.extract import Extract
from lm.objectives.finetune import network
from lm.objectives.finetune.network import Head, Rows
from lm.objectives.tag import Tag
from lm.sharding import unbox
from tests.convert.test_families import ALBERT, BART, BERT, T5, XLNET
from tests.marks import quick
from tests.objectives.labelled import model as small
from tests.objectives.labelled import words

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROBERTA = {**BERT, "pad_token_id": 1, "type_vocab_size": 1}
GPT2 = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 20, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "pad_token_id": 0}  # fmt: skip
NO_DROP = {"classifier_dropout": 0.0}


def theirs(name: str, settings: dict, labels: int, folder):
    """Make a model of theirs with weights far from zero; give it and ours of its backbone."""
    torch.manual_seed(0)
    config = getattr(transformers, name.partition("For")[0] + "Config")(**settings, num_labels=labels)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    model.base_model.save_pretrained(folder / "trunk")
    return model, load(folder / "trunk")


def kernel(model, name: str) -> dict[str, np.ndarray]:
    weights = {key: value.detach().numpy() for key, value in model.named_parameters()}
    found = {"kernel": weights[f"{name}.weight"].T}
    return found | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def nested(model, table: dict[str, str]) -> dict:
    """Name their layers of a head as ours."""
    tree: dict = {}
    for ours, name in table.items():
        *outer, last = ours.split("/")
        at = tree
        for part in outer:
            at = at.setdefault(part, {})
        at[last] = kernel(model, name)
    return tree


def ready(objective, loaded, head: dict, style: str):
    """Give the objective a frame, and the parameters of trunk and head; both are all that it has."""
    objective = dataclasses.replace(objective, frame=Frame(words(), style))
    shapes = unbox(jax.eval_shape(objective.init, jax.random.key(0), {}))
    params = {k: v for k, v in loaded.params.items() if k in shapes and k not in head} | head
    assert {k: v.shape for k, v in flat(params).items()} == {k: v.shape for k, v in flat(shapes).items()}
    return objective, params


def rows(objective, lengths=(11, 7), pack=True, seed=0):
    """Random tokens as a row of several sequences, or a row each; and the same for transformers."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(5, 55, n).astype(np.int32) for n in lengths]
    types = [np.repeat([0, 1], [n // 2, n - n // 2]).astype(np.int32) for n in lengths]
    laid = [network.Laid(ids, kinds, (0,)) for ids, kinds in zip(sequences, types)]
    groups = [laid] if pack else [[one] for one in laid]
    made = [network.lay_row(group, objective.model, objective.frame, sum(lengths) + 3) for group in groups]
    batch = {name: np.stack([row[name] for row, _ in made]) for name in made[0][0]}
    return batch, sequences, types, [begins for _, begins in made]


def each(model, sequences, types=None, **more):
    """Their outputs, one sequence at a time."""
    found = []
    for k, ids in enumerate(sequences):
        kinds = {} if types is None else {"token_type_ids": torch.tensor(types[k])[None]}
        with torch.no_grad():
            found.append(model(torch.tensor(ids)[None].long(), **kinds, **more))
    return found


CLASSIFIERS = {
    "bert": ("BertForSequenceClassification", {**BERT, **NO_DROP}, "bert", Head(), Rows(),
             {"pooler/dense": "bert.pooler.dense", "classifier": "classifier"}),
    "albert": ("AlbertForSequenceClassification", {**ALBERT, "classifier_dropout_prob": 0.0}, "bert", Head(), Rows(),
               {"pooler/dense": "albert.pooler", "classifier": "classifier"}),
    "roberta": ("RobertaForSequenceClassification", {**ROBERTA, **NO_DROP}, "roberta", Head(), Rows(),
                {"classifier/dense": "classifier.dense", "classifier/out": "classifier.out_proj"}),
    "gpt2": ("GPT2ForSequenceClassification", GPT2, "decoder", Head(), Rows(causal=True), {"classifier": "score"}),
    "xlnet": ("XLNetForSequenceClassification", {**XLNET, "summary_last_dropout": 0.0}, "xlnet", Head(), Rows(pack=False),
              {"summary": "sequence_summary.summary", "classifier": "logits_proj"}),
    "bart": ("BartForSequenceClassification", {**BART, "classifier_dropout": 0.0, "attention_dropout": 0.0}, "roberta", Head(),
             Rows(), {"classifier/dense": "classification_head.dense", "classifier/out": "classification_head.out_proj"}),
    "t5": ("T5ForSequenceClassification", {**T5, "classifier_dropout": 0.0}, "t5", Head(), Rows(),
           {"classifier/dense": "classification_head.dense", "classifier/out": "classification_head.out_proj"}),
}  # fmt: skip


@pytest.mark.parametrize("name", quick(CLASSIFIERS, ("bert", "bart", "xlnet")))
def test_scores_of_sequences(name, tmp_path):
    """Two texts in one row, each as if alone."""
    architecture, settings, style, head, how, table = CLASSIFIERS[name]
    model, loaded = theirs(architecture, settings, 3, tmp_path)
    objective = Classify(model=loaded.objective.model, labels=("a", "b", "c"), rows=how, head=head)
    objective, params = ready(objective, loaded, nested(model, table), style)
    batch, sequences, types, begins = rows(objective, pack=how.pack)
    if name in ("bart", "t5"):
        end, start = (2, 2) if name == "bart" else (1, 0)
        sequences = [np.append(ids[:-1], end).astype(np.int32) for ids in sequences]
        laid = [network.Laid(ids, np.zeros_like(ids), (0,)) for ids in sequences]
        row, edges = network.lay_row(laid, objective.model, Beginning(start), 21)
        batch, begins = {key: value[None] for key, value in row.items()}, [edges]
    last = objective.pool == "last"
    places = [edges[1:] - 1 if last else edges[:-1] for edges in begins]
    batch["places"] = np.array(places, np.int32)
    found = np.asarray(objective.logits(params, batch)).reshape(-1, 3)
    typed = types if name in ("bert", "albert", "xlnet") else None
    expected = np.concatenate([one.logits for one in each(model, sequences, typed)])
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


class Beginning:
    """A frame of which only the decoder's first token is asked."""

    def __init__(self, start: int):
        self.start = start


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_scores_of_words(name, tmp_path):
    settings = {**(BERT if name == "Bert" else ROBERTA), **NO_DROP}
    model, loaded = theirs(f"{name}ForTokenClassification", settings, 5, tmp_path)
    objective = Tag(model=loaded.objective.model, labels=tuple("OABCD"))
    head = {"classifier": kernel(model, "classifier")}
    objective, params = ready(objective, loaded, head, name.lower())
    batch, sequences, types, _ = rows(objective)
    batch["places"] = np.arange(21, dtype=np.int32)[None]
    found = objective.logits(params, batch)[0]
    expected = np.concatenate([one.logits[0] for one in each(model, sequences, types if name == "Bert" else None)])
    np.testing.assert_allclose(found[:18], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_scores_and_loss_of_answers(name, tmp_path):
    settings = BERT if name == "Bert" else ROBERTA
    model, loaded = theirs(f"{name}ForQuestionAnswering", settings, 2, tmp_path)
    objective = Extract(model=loaded.objective.model)
    objective, params = ready(objective, loaded, {"answer": kernel(model, "qa_outputs")}, name.lower())
    batch, sequences, types, _ = rows(objective)
    starts, ends = np.array([[4, 11 + 2]], np.int32), np.array([[6, 11 + 5]], np.int32)
    batch |= {"starts": starts, "ends": ends, "numbers": np.array([[1, 2]], np.int32), "weights": np.ones((1, 2), np.float32)}
    found = objective.predict(params, batch)
    sums, _ = objective.loss(params, batch, None, None)
    theirs_, loss = each(model, sequences, types if name == "Bert" else None), 0.0
    for side in ("start", "end"):
        expected = np.concatenate([one[f"{side}_logits"][0] for one in theirs_])
        np.testing.assert_allclose(found[side][0, :18], expected, atol=1e-4, rtol=1e-4)
    for k, ids in enumerate(sequences):
        kinds = {"token_type_ids": torch.tensor(types[k])[None]} if name == "Bert" else {}
        asked = {"start_positions": torch.tensor(starts[0, k : k + 1] - 11 * k).long()}
        asked |= {"end_positions": torch.tensor(ends[0, k : k + 1] - 11 * k).long()}
        loss += model(torch.tensor(ids)[None].long(), **kinds, **asked).loss.item()
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], loss / 2, rtol=1e-4)


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_scores_of_options(name, tmp_path):
    """Three options in a row; theirs are one batch."""
    settings = {**(BERT if name == "Bert" else ROBERTA), **NO_DROP}
    model, loaded = theirs(f"{name}ForMultipleChoice", settings, 2, tmp_path)
    objective = Choose(model=loaded.objective.model, most=3)
    root = name.lower()
    head = nested(model, {"pooler/dense": f"{root}.pooler.dense", "classifier": "classifier"})
    objective, params = ready(objective, loaded, head, root)
    batch, sequences, types, begins = rows(objective, lengths=(6, 6, 6))
    batch |= {"places": begins[0][None, None, :3].astype(np.int32), "offered": np.ones((1, 1, 3), bool)}
    kinds = {"token_type_ids": torch.tensor(np.stack(types))[None]} if name == "Bert" else {}
    with torch.no_grad():
        expected = model(torch.tensor(np.stack(sequences))[None].long(), **kinds).logits
    np.testing.assert_allclose(objective.logits(params, batch)[0], expected, atol=1e-4, rtol=1e-4)


def test_an_example_reads_the_same_alone_and_among_others():
    """Loss and gradient of packed examples are those of one a row."""
    examples = [Example({"text": text, "label": label}, "here") for text, label in
                (("one two three", "a"), ("four", "b"), ("five six", "a"), ("seven eight nine ten", "b"))]  # fmt: skip
    objective = Classify(model=small(context=16), labels=("a", "b"), rows=Rows(row=32))
    objective = dataclasses.replace(objective, frame=Frame(words(), "bert"))
    packed = objective.corrupt(None, {"examples": [(one, 0) for one in examples], "room": 4})
    alone = [objective.corrupt(None, {"examples": [(one, 0)], "room": 4}) for one in examples]
    params = unbox(objective.init(jax.random.key(0), {"tokens": packed["tokens"][None]}))

    def total(params, rows):
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return objective.loss(params, batch, None, None)[0]["loss"][0]

    left, right = (jax.value_and_grad(total)(params, rows) for rows in ([packed], alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5), left, right)
