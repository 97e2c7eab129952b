"""Parameter counts of the published shapes: those of the released modules, tied weights counted once."""

import math

import jax
import numpy as np
import pytest

from lm.models import presets
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Pooler
from lm.models.model import Model
from lm.models.transformer import Transformer

TOKENS = np.zeros((1, 4), np.int32)


def count(params) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def parts(model) -> dict[str, int]:
    if isinstance(model, EncoderDecoder):
        params = jax.eval_shape(Seq2Seq(model).init, jax.random.key(0), TOKENS, TOKENS)["params"]
    else:
        params = jax.eval_shape(Model(model).init, jax.random.key(0), TOKENS)["params"]
    return {name: count(tree) for name, tree in params.items()}


def backbone(model: Transformer) -> int:
    """Everything below the heads."""
    return sum(n for name, n in parts(model).items() if name in ("embed", "input", "project", "stack"))


def pooled(model: Transformer) -> int:
    pooler = jax.eval_shape(Pooler(model.width).init, jax.random.key(0), np.zeros((1, 4, model.width)))
    return backbone(model) + count(pooler)


# Models of transformers 4.44: whole language models, with untied or tied vocabulary as released.
WHOLE = {
    "GPT1": 116_534_784,
    "GPT2_SMALL": 124_439_808,
    "GPT2_MEDIUM": 354_823_168,
    "GPT2_LARGE": 774_030_080,
    "GPT2_XL": 1_557_611_200,
    "ROBERTA_BASE": 124_697_433,
    "ROBERTA_LARGE": 355_412_057,
    "ELECTRA_BASE_GENERATOR": 33_740_602,
    "ELECTRA_LARGE_GENERATOR": 51_295_290,
    "BART_BASE": 139_420_416,
    "BART_LARGE": 406_291_456,
    "T5_SMALL": 60_506_624,
    "T5_BASE": 222_903_552,
    "T5_LARGE": 737_668_096,
    "T5_3B": 2_851_598_336,
    "T5_11B": 11_307_321_344,
    "T5_1_1_SMALL": 76_961_152,
    "T5_1_1_BASE": 247_577_856,
    "T5_1_1_LARGE": 783_150_080,
    "T5_1_1_XL": 2_849_757_184,
    "T5_1_1_XXL": 11_135_332_352,
    "LLAMA2_7B": 6_738_415_616,
    "LLAMA2_13B": 13_015_864_320,
    "LLAMA2_70B": 68_976_648_192,
    "LLAMA3_8B": 8_030_261_248,
    "LLAMA3_70B": 70_553_706_496,
    "LLAMA3_2_1B": 1_235_814_400,
    "MISTRAL_7B": 7_241_732_096,
    "SMOLLM2_135M": 134_515_008,
    "QWEN3_0_6B": 596_049_920,
    "QWEN3_1_7B": 1_720_574_976,
    "QWEN3_4B": 4_022_468_096,
    "QWEN3_8B": 8_190_735_360,
    "GEMMA2_2B": 2_614_341_888,
    "GEMMA3_1B": 999_885_952,
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models(name):
    assert sum(parts(getattr(presets, name)).values()) == WHOLE[name]


# BertModel and RobertaModel with their pooler; "ForPreTraining" adds transform, vocabulary bias and two classes.
POOLED = {
    "BERT_BASE": 109_482_240,
    "BERT_LARGE": 335_141_888,
    "BERT_TINY": 4_385_920,
    "BERT_MINI": 11_170_560,
    "BERT_SMALL": 28_763_648,
    "BERT_MEDIUM": 41_373_184,
    "BERT_CHINESE": 102_267_648,
    "BERT_CHINESE_LARGE": 325_522_432,
    "ROBERTA_BASE": 124_645_632,
    "ROBERTA_LARGE": 355_359_744,
}


@pytest.mark.parametrize("name", POOLED)
def test_encoders(name):
    assert pooled(getattr(presets, name)) == POOLED[name]


@pytest.mark.parametrize(("name", "expected"), [("BERT_BASE", 110_106_428), ("BERT_LARGE", 336_226_108)])
def test_pretraining_heads(name, expected):
    model = getattr(presets, name)
    found = parts(model)
    assert pooled(model) + found["transform"] + found["head_bias"] + 2 * model.width + 2 == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ELECTRA_SMALL", 13_483_008), ("ELECTRA_BASE", 108_891_648), ("ELECTRA_LARGE", 334_092_288)],
)
def test_discriminators(name, expected):
    assert backbone(getattr(presets, name)) == expected


def test_albert_is_transformers():
    """ALBERT and ERNIE have no line in the published tables at hand: the reference's own modules are counted."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        albert = transformers.AlbertModel(
            transformers.AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
        )
        ernie = transformers.ErnieModel(
            transformers.ErnieConfig(vocab_size=18000, max_position_embeddings=513, hidden_act="relu")
        )
    for name, theirs in (("ALBERT_BASE", albert), ("ERNIE_BASE", ernie)):
        assert pooled(getattr(presets, name)) == sum(p.numel() for p in theirs.parameters()), name


def test_gemma_is_transformers():
    """The shapes too: the published config.json of each, read, is the preset."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from lm.convert.families.gemma import FAMILIES

    small = {"vocab_size": 262144, "hidden_size": 1152, "num_attention_heads": 4, "num_key_value_heads": 1,
             "intermediate_size": 6912, "max_position_embeddings": 32768, "sliding_window": 512}  # fmt: skip
    with torch.device("meta"):
        second = transformers.Gemma2ForCausalLM(transformers.Gemma2Config())  # its defaults are those of the 2B
        third = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**small))
    for name, theirs, family in (("GEMMA2_2B", second, FAMILIES[1]), ("GEMMA3_1B", third, FAMILIES[2])):
        assert WHOLE[name] == sum(p.numel() for p in theirs.parameters()), name
        assert family.objective(theirs.config.to_dict()).model == getattr(presets, name)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("SMALL", 0.125), ("MEDIUM", 0.356), ("LARGE", 0.760), ("XL", 1.3), ("2_7B", 2.65), ("6_7B", 6.66), ("13B", 12.85),
     ("175B", 174.6)],
)  # fmt: skip
def test_gpt3(name, billions):
    """Only rounded sizes are published; the paper's 13B rounds up from 12.85."""
    assert sum(parts(getattr(presets, f"GPT3_{name}")).values()) / 1e9 == pytest.approx(billions, rel=0.02)
