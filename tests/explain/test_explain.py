"""What `lm.explain` shows is what transformers and torch find in the same weights; and the page is safe to open."""

import base64
import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.explain import page as pages
from lm.explain.attribution import Inputs, Network, embed, gradient_times_input, integrated_gradients, observe, rollout
from lm.explain.explain import explain, numbers
from lm.models.lstm import LSTM
from lm.models.model import Model
from lm.objectives.baselines import LSTMLanguageModel
from tests.explain import opened
from tests.marks import quick
from tests.models.reference import draw, tiny
from tests.processes import command as start

torch = pytest.importorskip("torch")

TEXT = 'A cat, "sat" & </script><b>\u00e9!'

# -- numbers beside theirs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_attention_and_states_are_theirs(name, models):
    theirs, objective, params, _ = opened(models, name)
    tokens = np.random.default_rng(0).integers(5, 40, (2, 19)).astype(np.int32)
    with torch.no_grad():
        found = theirs(torch.tensor(tokens, dtype=torch.long), output_attentions=True, output_hidden_states=True)
    network = Network(objective.model, name != "bert")
    h, states, attention = observe(network, params, (tokens,))
    weights = np.asarray(attention["attention"])
    np.testing.assert_allclose(weights, np.stack([x.numpy() for x in found.attentions]), atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert weights.max() > 1.5 / 19  # it looks somewhere
    # Theirs of the last layer come after the norm.
    expected = np.stack([x.numpy() for x in found.hidden_states])
    np.testing.assert_allclose(states[:-1], expected[:-1], atol=1e-4)
    np.testing.assert_allclose(network.finish(params, states[-1]), expected[-1], atol=1e-4)
    np.testing.assert_allclose(h, expected[-1], atol=1e-4)
    np.testing.assert_allclose(network.logits(params, h), found.logits.numpy(), atol=1e-4)


def test_attention_of_an_encoder_decoder_is_theirs(models):
    theirs, objective, params, _ = opened(models, "t5")
    rng = np.random.default_rng(0)
    source, tokens = rng.integers(5, 40, (1, 9)).astype(np.int32), rng.integers(5, 40, (1, 6)).astype(np.int32)
    with torch.no_grad():
        ids = {"input_ids": torch.tensor(source, dtype=torch.long), "decoder_input_ids": torch.tensor(tokens, dtype=torch.long)}
        found = theirs(**ids, output_attentions=True)
    _, _, attention = observe(Network(objective.model, True), params, (source, tokens))
    for ours, names in (("encoder", "encoder"), ("decoder", "decoder"), ("decoder to source", "cross")):
        expected = np.stack([x.numpy() for x in found[f"{names}_attentions"]])
        np.testing.assert_allclose(attention[ours], expected, atol=1e-5)
        np.testing.assert_allclose(np.asarray(attention[ours]).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"share": True}, {"remat": "full"}, {"unroll": 0}, {"windows": (3, 0)}], ids=str)
def test_looking_changes_nothing(changes):
    """The same states with and without, whatever the scan; nothing is kept when nobody looks."""
    config = tiny(**changes)
    params, tokens = draw(config), np.arange(16)[None]
    plain, _ = Model(config).apply({"params": params}, tokens)
    h, states, attention = observe(Network(config, True), params, (tokens,))
    np.testing.assert_allclose(h, plain, atol=1e-6)
    assert states.shape == (3, 1, 16, 12)
    assert attention["attention"].shape == (2, 1, 3, 16, 16)
    variables = jax.eval_shape(Model(config).init, jax.random.key(0), tokens)
    assert set(variables) == {"params"}
    network = Network(config, True)
    quiet, loud = (jax.make_jaxpr(lambda p, k=k: network.read(p, (tokens,), look=k))(params) for k in (False, True))
    assert len(jax.tree.leaves(quiet.out_avals)) == 1
    assert str(quiet).count(" exp ") < str(loud).count(" exp ")


def torch_gradient(theirs, tokens, place, token, kind):
    """d log p(token) / d embeddings x embeddings, by torch."""
    vectors = theirs.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long)).detach().requires_grad_()
    logits = theirs(inputs_embeds=vectors).logits if kind != "t5" else None
    score = logits[0, place].log_softmax(-1)[token]
    score.backward()
    return score.item(), (vectors.grad * vectors).sum(-1).detach().numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_gradients_are_torchs(name, models):
    theirs, objective, params, _ = opened(models, name)
    tokens = np.random.default_rng(1).integers(5, 40, (1, 12)).astype(np.int32)
    network = Network(objective.model, name != "bert")
    places, ids = [11, 3, 7], [9, 4, 30]
    sides = Inputs(tokens).take([0] * 3)
    found = gradient_times_input(network, params, sides, embed(params, sides), places, ids)
    for row, place, token in zip(found, places, ids):
        _, expected = torch_gradient(theirs, tokens, place, token, name)
        np.testing.assert_allclose(row, expected[0], atol=1e-4, rtol=1e-3)
        assert np.abs(row).max() > 1e-2
        if name != "bert":
            assert (row[place + 1 :] == 0).all()


@pytest.mark.parametrize("baseline", quick(["mean", "zero"], ["mean"]))
@pytest.mark.parametrize("name", quick(["gpt2", "llama", "bert", "t5"], ["bert", "t5"]))
def test_integrated_gradients_are_complete(name, baseline, models):
    """They add up to the difference of log-probabilities within 1 %, which is taken from a plain forward pass."""
    _, objective, params, _ = opened(models, name)
    tokens = np.random.default_rng(2).integers(5, 40, (1, 9)).astype(np.int32)
    inputs = Inputs(tokens[:, 4:], tokens[:, :4]) if name == "t5" else Inputs(tokens)
    network, place = Network(objective.model, name != "bert"), inputs.tokens.shape[1] - 1
    table = np.asarray(params["embed"]["table"])
    begin = table.mean(0) if baseline == "mean" else np.zeros_like(table[0])
    log_p_V = jax.nn.log_softmax(network.logits(params, network.read(params, inputs.sides())[0, place]))
    vectors = tuple(np.broadcast_to(begin, (*side.shape, len(begin))) for side in inputs.sides())
    base_V = jax.nn.log_softmax(network.logits(params, network.read(params, inputs.sides(), vectors)[0, place]))
    token = int(np.abs(log_p_V - base_V).argmax())  # one whose probability the text changes, whatever the weights are
    log_p, base = log_p_V[token], base_V[token]
    found = integrated_gradients(network, params, inputs.sides(), embed(params, inputs.sides()), place, token, begin)
    assert found.difference == pytest.approx(float(log_p - base), abs=1e-4)
    assert abs(float(log_p - base)) > 0.01
    if (name, baseline) not in (("llama", "zero"), ("t5", "zero")):  # RMS norms jump at zero: why the mean is the default
        assert found.values.sum() == pytest.approx(float(log_p - base), rel=0.01)
    assert found.gap == pytest.approx(abs(found.values.sum() - found.difference) / abs(found.difference), rel=1e-3)


def test_rollout():
    """Abnar & Zuidema 2020: the product of (A + I) / 2 over layers."""
    weights = np.random.default_rng(0).dirichlet(np.ones(5), (3, 2, 5))
    found, expected = rollout(weights), np.eye(5)
    for layer in range(3):
        expected = 0.5 * (weights[layer].mean(0) + np.eye(5)) @ expected
        np.testing.assert_allclose(found[layer], expected, rtol=1e-6)
        np.testing.assert_allclose(found[layer].sum(-1), 1)


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_causal_probabilities(name, models):
    theirs, objective, params, tokenizer = opened(models, name)
    found = explain(objective, params, tokenizer, TEXT, attribute="3")
    row = [tokenizer.separator, *tokenizer.encode(TEXT).tolist()]
    with torch.no_grad():
        log_p = theirs(torch.tensor([row])).logits[0].log_softmax(-1).numpy()
    assert len(found["predictions"]) == len(row) == len(found["columns"])
    for t, one in enumerate(found["predictions"]):
        token = row[t + 1] if t + 1 < len(row) else int(log_p[t].argmax())
        assert one["id"] == token
        assert one["logp"] == pytest.approx(log_p[t, token], abs=1e-4)
        assert one["entropy"] == pytest.approx(-(np.exp(log_p[t]) * log_p[t]).sum(), abs=1e-3)
        assert one["rank"] == 1 + (log_p[t] > log_p[t, token]).sum()
        assert one["top"][0][1] == pytest.approx(np.exp(log_p[t].max()), rel=1e-3)
        assert one["lens"][-1]["p"] == pytest.approx(np.exp(log_p[t, token]), rel=1e-3)
        assert (one["lens"][-1]["layer"], one["lens"][-1]["rank"]) == (3, 1)
        assert ("integrated" in one) == (t == 2)
    assert found["predictions"][2]["integrated"].gap <= 0.01
    assert found["predictions"][-1]["own"]


def test_masked_tokens_in_turn(models):
    theirs, objective, params, tokenizer = opened(models, "bert")
    found = explain(objective, params, tokenizer, "the cat sat", attribute="1")
    cls, sep, mask = (tokenizer.special_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    row = [cls, *tokenizer.encode("the cat sat").tolist(), sep]
    assert len(found["predictions"]) == len(row) - 2
    for t, one in enumerate(found["predictions"], 1):
        hidden = [*row[:t], mask, *row[t + 1 :]]
        with torch.no_grad():
            log_p = theirs(torch.tensor([hidden])).logits[0, t].log_softmax(-1).numpy()
        assert (one["id"], one["column"], one["own"]) == (row[t], t, False)
        assert one["logp"] == pytest.approx(log_p[row[t]], abs=1e-4)


def test_masks_in_the_text(models):
    theirs, objective, params, tokenizer = opened(models, "bert")
    found = explain(objective, params, tokenizer, "the [MASK] sat on [MASK]", attribute="1")
    cls, sep, mask = (tokenizer.special_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    row = [cls, *tokenizer.encode("the [MASK] sat on [MASK]", special=True), sep]
    places = [t for t, i in enumerate(row) if i == mask]
    with torch.no_grad():
        best = theirs(torch.tensor([[int(i) for i in row]])).logits[0].argmax(-1).tolist()
    assert [(p["column"], p["id"], p["own"]) for p in found["predictions"]] == [(t, best[t], True) for t in places]


def test_an_answer_asked_for_and_its_own(models):
    theirs, objective, params, tokenizer = opened(models, "t5")
    found = explain(objective, params, tokenizer, "a <extra_id_0> b", target="xyz", attribute="1")
    end = objective.end
    source = [*tokenizer.encode("a <extra_id_0> b", special=True).tolist(), end]
    read = [objective.pad, *b"xyz"]
    with torch.no_grad():
        log_p = theirs(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([read])).logits[0].log_softmax(-1)
    assert found["split"] == len(source)
    assert [p["id"] for p in found["predictions"]] == [*b"xyz", end]
    for t, one in enumerate(found["predictions"]):
        assert one["logp"] == pytest.approx(float(log_p[t, one["id"]]), abs=1e-4)
    assert len(found["predictions"][0]["input"]) == len(source) + len(read)
    assert set(found["attention"]) == {"encoder", "decoder", "decoder to source"}
    own = explain(objective, params, tokenizer, "a <extra_id_0> b", attribute="1")
    greedy = [objective.pad]
    with torch.no_grad():
        for _ in range(5):
            ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([greedy])}
            greedy.append(int(theirs(**ids).logits[0, -1].argmax()))
    assert [p["id"] for p in own["predictions"]][:5] == greedy[1:][: len(own["predictions"])]
    assert ["integrated" in p for p in own["predictions"]] == [k == 0 for k in range(len(own["predictions"]))]


# -- the page ----------------------------------------------------------------------------------------------------------


def data_of(html):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)[1])


@pytest.fixture(scope="module")
def html(models):
    _, objective, params, tokenizer = opened(models, "gpt2")
    return pages.page({**explain(objective, params, tokenizer, TEXT, attribute="4"), "name": "<i>run</i>"})


def test_text_stays_text(html):
    assert html.count("</script>") == 2
    assert "<b>" not in html
    assert "<i>" not in html
    title = re.search("<title>(.*?)</title>", html)[1]
    assert "&lt;/script&gt;&lt;b&gt;" in title
    data = data_of(html)
    assert "".join(data["columns"][1:]).startswith('A cat, "sat" & </script><b>')
    assert data["name"] == "<i>run</i>"


def test_nothing_comes_from_elsewhere(html):
    for word in ("http:", "https:", "src=", "@import", "url(", "fetch(", "innerHTML", "document.write"):
        assert word not in html, word
    assert "prefers-color-scheme: dark" in html


def test_packed_attention(html, models):
    """A byte a weight: within a hundredth, small ones within a tenth of themselves."""
    _, objective, params, tokenizer = opened(models, "gpt2")
    weights = explain(objective, params, tokenizer, TEXT, attribute="1")["attention"]["attention"]
    one = data_of(html)["attention"][0]
    assert (one["causal"], one["heads"], one["rows"]) == (True, 4, weights.shape[2])
    for layer in range(3):
        raw = np.frombuffer(base64.b64decode(one["layers"][str(layer + 1)]), np.uint8).reshape(4, -1)
        found = (raw / 255) ** 2
        expected = weights[layer][:, *np.tril_indices(weights.shape[2])]
        np.testing.assert_allclose(found, expected, atol=0.005)
        large = expected > 0.005
        np.testing.assert_allclose(found[large], expected[large], rtol=0.1)


def test_large_models_show_some_layers(models, monkeypatch):
    rng = np.random.default_rng(0)
    attention = {"attention": rng.dirichlet(np.ones(20), (12, 4, 20))}
    monkeypatch.setattr(pages, "CAPACITY", 12 * 4 * 400 // 3)
    found, notes = pages.pictures(attention, "auto")
    assert list(found[0]["layers"]) == ["1", "5", "8", "12"]
    assert "of 12" in notes[0]
    assert list(pages.pictures(attention, "all")[0][0]["layers"]) == [str(k) for k in range(1, 13)]
    assert list(pages.pictures(attention, [2, 9])[0][0]["layers"]) == ["2", "9"]


def test_size_at_200_tokens(models):
    """Twelve layers of twelve heads: a few megabytes."""
    attention = {"attention": np.random.default_rng(0).dirichlet(np.ones(200), (12, 12, 200)).astype(np.float32)}
    found, _ = pages.pictures(attention, "auto")
    assert len(json.dumps(found)) < 10e6


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["auto,2", "0", "x", "1,,2", "-1"])
def test_numbers(text):
    with pytest.raises(UserError, match="--layers"):
        numbers(text, 1, "layers")
    assert numbers("3,5", 1, "layers") == [3, 5]


@pytest.mark.parametrize(
    ("name", "text", "more", "said"),
    [
        ("gpt2", "x" * 65, {}, "more than the 64"),
        ("bert", "cat " * 50, {}, "more than the 40"),
        ("gpt2", "a\udcff", {}, "surrogate"),
        ("bert", "   ", {}, "no tokens"),
        ("gpt2", "a", {"target": "b"}, "encoder-decoders"),
        ("gpt2", "a", {"attribute": "9"}, "2 predictions"),
        ("gpt2", "a", {"baseline": "[NO]"}, "--baseline"),
        ("gpt2", "a", {"layers": "1,99"}, "--layers=1,99: the model has 3 layers"),
    ],
)
def test_hostile_input(name, text, more, said, models):
    _, objective, params, tokenizer = opened(models, name)
    with pytest.raises(UserError, match=said):
        explain(objective, params, tokenizer, text, **more)


def test_other_networks_get_a_line(models):
    with pytest.raises(UserError, match="no model of"):
        explain(LSTMLanguageModel(model=LSTM(vocab=257)), {}, opened(models, "gpt2")[3], "a")


def test_the_command(models, tmp_path):
    folder, page = models["gpt2"][1], tmp_path / "a.html"
    more = ["--attribute=2", f"--beside={folder}", "--neurons=3"]
    done = start("lm.explain", f"--model={folder}", f"--text={TEXT}", f"--output={page}", *more)
    assert done.returncode == 0, done.stderr
    data = data_of(page.read_text(encoding="utf-8"))
    # Beside itself: no difference but of the first byte, which nothing precedes; bytes of one character are one span.
    assert [span[3] for span in data["beside"]["spans"]] == [None, *[0] * (len(TEXT) - 1)]
    assert np.shape(data["ablation"]["heads"]["attention"]) == (3, 4)
    assert len(data["ablation"]["neurons"]) == 3
    assert [one["token"] for one in data["neighbours"]][:9] == list(dict.fromkeys(TEXT))[:9]
    assert sum(point["chosen"] for point in data["map"]["points"]) == len(data["neighbours"]) == len({*TEXT.encode()})
    assert len(data["predictions"]) == len(TEXT.encode())  # all but the first, which nothing precedes, and the next
    for args, said in (((), "--text"), (("--text=a", "--output=no/where.html"), "no folder"), (("--text=a",), "name one")):
        wrong = start("lm.explain", *args)
        assert wrong.returncode == 2
        assert said in wrong.stderr
        assert "Traceback" not in wrong.stderr


def test_numbers_are_plain(models):
    """What `explain` gives besides arrays and Integrated goes into JSON as it is."""
    _, objective, params, tokenizer = opened(models, "bert")
    found = explain(objective, params, tokenizer, "cat", attribute="1")
    assert dataclasses.is_dataclass(found["predictions"][0]["integrated"])
    json.dumps({k: v for k, v in found["predictions"][0].items() if k not in ("input", "integrated")})
