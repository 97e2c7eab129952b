"""Parameter counts of the published models, closed forms, and the formula for operations."""

import jax
import numpy as np
import pytest

from lm.models import flops, presets
from lm.models.model import Model
from lm.models.transformer import Transformer
from tests.models.reference import tiny

GPT2 = {"vocab": 50_257, "context": 1024}
SIZES = {"SMALL": 124_439_808, "MEDIUM": 354_823_168, "LARGE": 774_030_080, "XL": 1_557_611_200}


def count(config: Transformer) -> int:
    tokens = np.zeros((1, config.context), np.int32)
    return flops.parameter_count(jax.eval_shape(Model(config).init, jax.random.key(0), tokens))


@pytest.mark.parametrize("size", SIZES)
def test_gpt2(size):
    """spec.md, 10.2 and B; the closed form V d + P d + L (12 d^2 + 13 d) + 2 d."""
    config = getattr(presets, f"GPT2_{size}")
    assert count(config) == SIZES[size]
    v, p, d = config.vocab, config.context, config.width
    assert v * d + p * d + config.depth * (12 * d * d + 13 * d) + 2 * d == SIZES[size]


def test_padded_table():
    """50,257 rounded up to a multiple of 128 is 50,304."""
    small = Transformer(**GPT2)
    assert count(Transformer(**GPT2, pad_vocab=128)) - count(small) == (50_304 - 50_257) * 768


def test_gpt1():
    """Post-norm: 512 positions and no final norm; spec.md, B."""
    assert count(presets.GPT1) == 116_534_784


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # Public counts: Llama 2 7B, Llama 3 8B, TinyLlama 1.1B.
        ({"vocab": 32_000, "width": 4096, "depth": 32, "heads": 32, "mlp": 11_008}, 6_738_415_616),
        ({"vocab": 128_256, "width": 4096, "depth": 32, "heads": 32, "kv_heads": 8, "mlp": 14_336}, 8_030_261_248),
        ({"vocab": 32_000, "width": 2048, "depth": 22, "heads": 32, "kv_heads": 4, "mlp": 5632}, 1_100_048_384),
    ],
)
def test_llama(fields, expected):
    llama = {"activation": "swiglu", "norm": "rms", "positions": "rotary", "bias": False, "tied": False, "context": 64}
    assert count(Transformer(**llama, **fields)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"bias": False, "qkv_bias": True},
        {"tied": False},
        {"qk_norm": True},
        {"parallel": True},
        {"placement": "post"},
        {"activation": "swiglu", "norm": "rms"},
        {"heads": 4, "kv_heads": 2, "head": 5},
        {"positions": "bucket"},
        {"positions": "none", "mlp": 0},
    ],
    ids=str,
)
def test_closed_form(changes):
    c = tiny(**changes)
    d, h, f = c.width, c.head_size, c.mlp_size
    gate = c.activation == "swiglu"
    attention = d * h * (2 * c.heads + 2 * c.kv) + 2 * h * c.qk_norm
    attention += h * (c.heads + 2 * c.kv) * (c.bias if c.qkv_bias is None else c.qkv_bias) + d * c.bias
    feed = d * f * (2 + gate) + c.bias * (f * (1 + gate) + d)
    norm = d * (1 + (c.norm == "layer" and c.bias))
    tables = c.vocab * d * (1 if c.tied else 2) + c.context * d * (c.positions == "learned")
    tables += 32 * c.heads * (c.positions == "bucket")
    norms = c.depth * (1 if c.parallel else 2) + (c.placement == "pre")
    assert count(c) == tables + c.depth * (attention + feed) + norms * norm


def test_flops():
    """PaLM's formula: 6 x matrix parameters + 12 x depth x heads x head x length, tables counted once as the head."""
    small = Transformer(**GPT2)
    matrices = 12 * 12 * 768**2 + 50_257 * 768
    assert flops.train_flops(small, 1024) == 6 * matrices + 12 * 12 * 768 * 1024
    # 6 N is 7.5e8; nanoGPT reports 8.7e8 a token for this shape with attention (its N leaves positions out).
    assert flops.train_flops(small, 1024) == pytest.approx(8.57e8, rel=0.01)


def test_flops_of_variants():
    base = tiny()
    d, f = base.width, base.mlp_size
    one = flops.train_flops(base, 16)
    assert flops.train_flops(tiny(activation="swiglu"), 16) - one == 6 * base.depth * d * f
    assert flops.train_flops(tiny(activation="geglu_tanh"), 16) - one == 6 * base.depth * d * f
    assert flops.train_flops(tiny(activation="gelu"), 16) == one
    assert flops.train_flops(tiny(activation="silu"), 16) == one
    assert one - flops.train_flops(tiny(kv_heads=1), 16) == 6 * base.depth * 2 * d * base.head_size * (base.heads - 1)
    assert flops.train_flops(base, 32) - one == 12 * base.depth * base.heads * base.head_size * 16
    assert flops.train_flops(tiny(tied=False), 16) == one


def test_flops_are_the_compilers():
    """A third of the formula against XLA's own count of the forward pass, unrolled and without attention's triangle."""
    config = tiny(width=64, heads=4, mlp=256, unroll=0, vocab=512, context=128, activation="relu", bias=False)
    model, tokens = Model(config), np.zeros((1, 128), np.int32)

    def logits(p, t):
        h, _ = model.apply({"params": p}, t, causal=False)
        return model.apply({"params": p}, method="head").logits(h)

    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    counted = jax.jit(logits).lower(params, tokens).compile().cost_analysis()["flops"]
    assert flops.train_flops(config, 128) * 128 / 3 == pytest.approx(counted, rel=0.05)


class Device:
    platform = "gpu"

    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("Tesla T4", 65e12),
        ("NVIDIA L4", 121e12),
        ("some other chip", None),
    ],
)
def test_peak(kind, rate):
    assert flops.peak(Device(kind)) == rate


def test_peak_of_a_longer_name():
    assert flops.peak(Device("NVIDIA L40S")) != flops.peak(Device("NVIDIA L4"))
