"""Ablation: beside torch with the same rows of its matrices zeroed by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from lm.errors import UserError
from lm.explain.ablation import ablate
from tests.explain import opened

torch = pytest.importorskip("torch")
TEXT = "A cat sat on a mat"


def torch_loss(theirs, row):
    with torch.no_grad():
        log_p = theirs(torch.tensor([row])).logits[0].log_softmax(-1)
    return -float(log_p[torch.arange(len(row) - 1), torch.tensor(row[1:])].mean())


@pytest.fixture(scope="module")
def ablation(models):
    _, objective, params, tokenizer = opened(models, "gpt2")
    return ablate(objective, params, tokenizer, TEXT, neurons=40)


def test_heads_are_torchs(ablation, models):
    """Every head of every layer; GPT-2's matrix has a head's rows one behind another."""
    theirs, _, _, tokenizer = opened(models, "gpt2")
    row = [tokenizer.separator, *tokenizer.encode(TEXT).tolist()]
    before = torch_loss(theirs, row)
    assert ablation.loss == pytest.approx(before, abs=1e-5)
    expected = np.zeros((3, 4))
    for layer in range(3):
        weight = theirs.transformer.h[layer].attn.c_proj.weight
        for head in range(4):
            kept = weight.detach().clone()
            with torch.no_grad():
                weight[6 * head : 6 * head + 6] = 0
                expected[layer, head] = torch_loss(theirs, row) - before
                weight.copy_(kept)
    np.testing.assert_allclose(ablation.heads["attention"], expected, atol=2e-5)
    assert np.abs(expected).max() > 0.01


def test_neurons_are_torchs(ablation, models):
    """Those of the largest estimates, exactly; the estimate orders them about as the exact changes do."""
    theirs, _, _, tokenizer = opened(models, "gpt2")
    row = [tokenizer.separator, *tokenizer.encode(TEXT).tolist()]
    assert len(ablation.neurons) == 40
    assert ablation.estimates["stack"].shape == (3, 96)
    for one in ablation.neurons[:6]:
        weight = theirs.transformer.h[one.layer].mlp.c_proj.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[one.neuron] = 0
            change = torch_loss(theirs, row) - ablation.loss
            weight.copy_(kept)
        assert one.change == pytest.approx(change, abs=2e-5)
        assert one.estimate == pytest.approx(ablation.estimates["stack"][one.layer, one.neuron])
    exact, estimates = ([getattr(one, name) for one in ablation.neurons] for name in ("change", "estimate"))
    assert spearmanr(exact, estimates).statistic > 0.9
    smallest = min(abs(x) for x in estimates)
    assert (np.abs(ablation.estimates["stack"]) >= smallest * (1 - 1e-5)).sum() == 40


@pytest.mark.slow
def test_encoder_decoders_and_masks(models):
    """Both stacks and the attention to the source; masks of a text are the model's own guesses."""
    _, objective, params, tokenizer = opened(models, "t5")
    found = ablate(objective, params, tokenizer, "a <extra_id_0> b", target="xy", neurons=4)
    assert {name: x.shape for name, x in found.heads.items()} == {
        "encoder": (2, 3), "decoder": (3, 3), "decoder to source": (3, 3)
    }  # fmt: skip
    assert set(found.estimates) == {"encoder", "decoder"}
    assert len(found.neurons) == 4
    _, objective, params, tokenizer = opened(models, "bert")
    masked = ablate(objective, params, tokenizer, "the [MASK] sat", neurons=0)
    assert masked.loss > 0
    assert not masked.neurons
    with pytest.raises(UserError, match="--ablate=all"):
        ablate(objective, params, tokenizer, "the cat sat", budget=1.0)
