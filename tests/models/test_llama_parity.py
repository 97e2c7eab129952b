"""Llama against transformers: RMSNorm, rotary angles and their scalings, grouped heads, SwiGLU, untied, no biases."""

import math

import jax
import numpy as np
import pytest

from lm.models.model import Model
from lm.models.positions import Rotary, frequencies
from lm.models.transformer import Transformer
from tests.models.reference import arrays, llama_params, stirred

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
rope = pytest.importorskip("transformers.modeling_rope_utils")
torch.set_num_threads(1)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Theirs -> ours, for the whole model.
SCALINGS = {
    "none": ({"rope_type": "default"}, Rotary(base=500.0)),
    "linear": ({"rope_type": "linear", "factor": 4.0}, Rotary(base=500.0, scaling="linear", factor=4.0)),
    "llama3": (LLAMA3, Rotary(base=500.0, scaling="llama3", factor=8.0, low=1, high=4, original=32)),
    "yarn": (YARN, Rotary(base=500.0, scaling="yarn", factor=4.0, low=1, high=32, original=16)),
}


def llama(scaling: dict, base: float, **changes):
    fields = {
        "vocab_size": 41,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_theta": base, **scaling},
        **changes,
    }
    return transformers.LlamaConfig(**fields)


@pytest.mark.parametrize("name", SCALINGS)
def test_logits(name):
    scaling, rotary = SCALINGS[name]
    theirs = stirred(torch, transformers.LlamaForCausalLM(llama(scaling, 500.0)), 1)
    config = Transformer(
        vocab=41, context=64, width=24, depth=2, heads=6, kv_heads=2, head=8, mlp=40, activation="swiglu", norm="rms",
        positions="rotary", rotary=rotary, bias=False, tied=False,
    )  # fmt: skip
    params = llama_params(arrays(theirs), config)
    tokens = np.random.default_rng(0).integers(0, 41, (2, 50))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), output_hidden_states=True)

    @jax.jit
    def run(params, tokens):
        model = Model(config)
        h, _ = model.apply({"params": params}, tokens)
        return h, model.apply({"params": params}, method="head").logits(h)

    h, logits = run(params, tokens)
    np.testing.assert_allclose(h, expected.hidden_states[-1].numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4, rtol=1e-4)


def theirs_of(rotary: Rotary, head: int):
    """transformers' frequencies for the same numbers."""
    names = {
        "linear": {"factor": rotary.factor},
        "llama3": {
            "factor": rotary.factor,
            "low_freq_factor": rotary.low,
            "high_freq_factor": rotary.high,
            "original_max_position_embeddings": rotary.original,
        },
        "yarn": {
            "factor": rotary.factor,
            "beta_fast": rotary.high,
            "beta_slow": rotary.low,
            "original_max_position_embeddings": rotary.original,
        },
    }[rotary.scaling]
    config = llama({"rope_type": rotary.scaling, **names}, rotary.base, head_dim=head)
    config.rope_parameters["partial_rotary_factor"] = rotary.share
    inverse, factor = rope.ROPE_INIT_FUNCTIONS[rotary.scaling](config, "cpu")
    return inverse.numpy(), factor


@pytest.mark.parametrize(
    ("rotary", "head"),
    [
        (Rotary(scaling="linear", factor=4.0), 64),
        (Rotary(scaling="linear", factor=2.5, share=0.5, base=1e6), 80),
        (Rotary(scaling="llama3", factor=8.0, base=500_000.0), 128),
        (Rotary(scaling="llama3", factor=32.0, base=500_000.0, low=1.0, high=4.0), 64),
        (Rotary(scaling="llama3", factor=3.0, low=2.0, high=7.0, original=512), 32),
        (Rotary(scaling="yarn", factor=4.0, low=1, high=32, original=4096), 128),
        (Rotary(scaling="yarn", factor=16.0, low=1, high=32, original=4096, base=1e6), 64),
        (Rotary(scaling="yarn", factor=40.0, low=1, high=32, original=4096, share=0.5), 128),
        (Rotary(scaling="yarn", factor=2.0, low=1, high=32, original=32), 16),
    ],
    ids=str,
)
def test_scaled_frequencies(rotary, head):
    inverse, factor = frequencies(rotary, head)
    expected, expected_factor = theirs_of(rotary, head)
    np.testing.assert_allclose(inverse, expected, rtol=1e-5)
    assert factor == pytest.approx(expected_factor, rel=1e-6)
    plain, _ = frequencies(Rotary(base=rotary.base, share=rotary.share), head)
    assert np.abs(inverse / plain - 1).max() > 0.1


@pytest.mark.parametrize(("factor", "head", "share"), [(2.0, 64, 1.0), (8.0, 128, 1.0), (3.0, 64, 0.25)])
def test_ntk(factor, head, share):
    """base x factor^(d / (d - 2)); transformers' dynamic form is that at `factor` times the length."""
    rotary = Rotary(scaling="ntk", factor=factor, share=share)
    inverse, scale = frequencies(rotary, head)
    size = int(head * share)
    base = 10_000 * factor ** (size / (size - 2))
    np.testing.assert_allclose(inverse, [base ** (-2 * i / size) for i in range(size // 2)], rtol=1e-6)
    assert scale == 1
    assert inverse[0] == 1
    # The slowest pair turns `factor` times slower: the whole point of the exponent.
    assert inverse[-1] * factor == pytest.approx(frequencies(Rotary(share=share), head)[0][-1], rel=1e-5)
    config = llama({"rope_type": "dynamic", "factor": 1.0}, 10_000.0, head_dim=head)
    config.rope_parameters["partial_rotary_factor"] = share
    length = int(config.max_position_embeddings * factor)
    dynamic, _ = rope.ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=length)
    np.testing.assert_allclose(inverse, dynamic.numpy(), rtol=1e-5)


def test_yarn_leaves_fast_pairs_alone():
    """More than `high` turns over the original context: as trained; less than `low`: divided."""
    rotary = Rotary(scaling="yarn", factor=8.0, low=1, high=32, original=4096)
    inverse, _ = frequencies(rotary, 128)
    plain, _ = frequencies(Rotary(), 128)
    turns = 4096 * plain / (2 * math.pi)
    np.testing.assert_allclose(inverse[turns > 40], plain[turns > 40], rtol=1e-6)
    np.testing.assert_allclose(inverse[turns < 0.8], plain[turns < 0.8] / 8, rtol=1e-6)
