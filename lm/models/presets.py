"""Published sizes; `dataclasses.replace` varies one. Dropout and other parts of a recipe are in configs/."""

from dataclasses import replace

from lm.models.encoder_decoder import EncoderDecoder
from lm.models.memory import TransformerXL
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from lm.models.two_stream import XLNet

# -- Decoders ----------------------------------------------------------------------------------------------------------

# Radford et al. 2018, https://github.com/openai/finetune-transformer-lm: post-norm, no norm at the end.
GPT1 = Transformer(vocab=40478, context=512, width=768, depth=12, heads=12, placement="post", init_scale_depth=False)

# Radford et al. 2019, https://github.com/openai/gpt-2. 50,257 symbols; pad_vocab=128 suits accelerators and meshes.
GPT2_SMALL = Transformer(vocab=50257, context=1024, width=768, depth=12, heads=12)
GPT2_MEDIUM = replace(GPT2_SMALL, width=1024, depth=24, heads=16)
GPT2_LARGE = replace(GPT2_SMALL, width=1280, depth=36, heads=20)
GPT2_XL = replace(GPT2_SMALL, width=1600, depth=48, heads=25)

# Brown et al. 2020, table 2.1. Every layer dense here: the paper does not give the width of its sparse band. Its printed
# 24 heads of XL and width 5140 of 13B do not divide; these are fairseq's.
GPT3_SMALL = replace(GPT2_SMALL, context=2048)
GPT3_MEDIUM = replace(GPT3_SMALL, width=1024, depth=24, heads=16)
GPT3_LARGE = replace(GPT3_SMALL, width=1536, depth=24, heads=16)
GPT3_XL = replace(GPT3_SMALL, width=2048, depth=24, heads=32)
GPT3_2_7B = replace(GPT3_SMALL, width=2560, depth=32, heads=32)
GPT3_6_7B = replace(GPT3_SMALL, width=4096, depth=32, heads=32)
GPT3_13B = replace(GPT3_SMALL, width=5120, depth=40, heads=40)
GPT3_175B = replace(GPT3_SMALL, width=12288, depth=96, heads=96)

# Touvron et al. 2023 (Llama 2), Llama team 2024 (Llama 3).
LLAMA2_7B = Transformer(
    vocab=32000, context=4096, width=4096, depth=32, heads=32, mlp=11008, activation="swiglu", norm="rms",
    positions="rotary", bias=False, tied=False, init_scale_depth=False,
)  # fmt: skip
LLAMA2_13B = replace(LLAMA2_7B, width=5120, depth=40, heads=40, mlp=13824)
LLAMA2_70B = replace(LLAMA2_7B, width=8192, depth=80, heads=64, kv_heads=8, mlp=28672)
LLAMA3_8B = replace(LLAMA2_7B, vocab=128256, context=8192, kv_heads=8, mlp=14336, rotary=Rotary(base=500_000.0))
LLAMA3_70B = replace(LLAMA3_8B, width=8192, depth=80, heads=64, mlp=28672)
LLAMA3_2_1B = replace(
    LLAMA3_8B, context=131072, width=2048, depth=16, heads=32, mlp=8192, tied=True,
    rotary=Rotary(base=500_000.0, scaling="llama3", factor=32.0),
)  # fmt: skip

# Jiang et al. 2023; Allal et al. 2025; Yang et al. 2025.
MISTRAL_7B = replace(LLAMA2_7B, context=32768, kv_heads=8, mlp=14336, windows=(4096,))
SMOLLM2_135M = replace(
    LLAMA2_7B, vocab=49152, context=8192, width=576, depth=30, heads=9, kv_heads=3, mlp=1536, tied=True,
    rotary=Rotary(base=100_000.0),
)  # fmt: skip
QWEN3_0_6B = replace(
    LLAMA2_7B, vocab=151936, context=40960, width=1024, depth=28, heads=16, kv_heads=8, head=128, mlp=3072, eps=1e-6,
    qk_norm=True, tied=True, rotary=Rotary(base=1_000_000.0),
)  # fmt: skip
QWEN3_1_7B = replace(QWEN3_0_6B, width=2048, mlp=6144)
QWEN3_4B = replace(QWEN3_0_6B, width=2560, depth=36, heads=32, mlp=9728)
QWEN3_8B = replace(QWEN3_4B, width=4096, mlp=12288, tied=False)

# Gemma team 2024 (Gemma 2): every other layer sees a window, scores and logits have a cap; Gemma team 2025 (Gemma 3): five
# layers with a window, then one without, norms on queries and keys in place of the caps.
GEMMA2_2B = Transformer(
    vocab=256000, context=8192, width=2304, depth=26, heads=8, kv_heads=4, head=256, mlp=9216, activation="geglu_tanh",
    norm="rms_one", placement="sandwich", eps=1e-6, embed_scale="sqrt_width", positions="rotary", windows=(4096, 0), bias=False,
    attention_cap=50.0, logit_cap=30.0, init_scale_depth=False,
)  # fmt: skip
GEMMA3_1B = replace(
    GEMMA2_2B, vocab=262144, context=32768, width=1152, heads=4, kv_heads=1, mlp=6912, embed_scale="sqrt_width", qk_norm=True,
    rotary=Rotary(base=1_000_000.0, local=10_000.0), windows=(512, 512, 512, 512, 512, 0), attention_cap=0.0, logit_cap=0.0,
)  # fmt: skip

# -- Encoders ----------------------------------------------------------------------------------------------------------

# Devlin et al. 2019, https://github.com/google-research/bert; exact gelu as its ports run it (the TensorFlow code trained
# with the tanh form, 1e-4 apart).
BERT_BASE = Transformer(
    vocab=30522, context=512, width=768, depth=12, heads=12, activation="gelu", placement="post", eps=1e-12, types=2,
    embed_norm=True, transform=True, head_bias=True, init_positions=0.02, init_scale_depth=False, init_truncate=True,
)  # fmt: skip
BERT_LARGE = replace(BERT_BASE, width=1024, depth=24, heads=16)
BERT_TINY = replace(BERT_BASE, width=128, depth=2, heads=2)
BERT_MINI = replace(BERT_BASE, width=256, depth=4, heads=4)
BERT_SMALL = replace(BERT_BASE, width=512, depth=4, heads=8)
BERT_MEDIUM = replace(BERT_BASE, width=512, depth=8, heads=8)
BERT_CHINESE = replace(BERT_BASE, vocab=21128)  # BERT-wwm and MacBERT base too (Cui et al. 2020, 2021)
BERT_CHINESE_LARGE = replace(BERT_LARGE, vocab=21128)

# Liu et al. 2019: positions begin at row 2; the one token type is a zero row of the port.
ROBERTA_BASE = replace(BERT_BASE, vocab=50265, offset=2, types=1, eps=1e-5)
ROBERTA_LARGE = replace(ROBERTA_BASE, width=1024, depth=24, heads=16)

# Lan et al. 2020: one layer's parameters for all, narrow tables.
ALBERT_BASE = replace(BERT_BASE, vocab=30000, embed=128, share=True, activation="gelu_tanh")
ALBERT_LARGE = replace(ALBERT_BASE, width=1024, depth=24, heads=16)

# Sun et al. 2019 (ERNIE 1.0).
ERNIE_BASE = replace(BERT_BASE, vocab=18000, context=513, activation="relu", eps=1e-5)

# Clark et al. 2020: discriminators, and the generator that goes with each (the released small one is as wide as its
# discriminator). The transform of the generator's head ends at the tables' width.
ELECTRA_SMALL = replace(BERT_BASE, width=256, heads=4, embed=128)
ELECTRA_BASE = BERT_BASE
ELECTRA_LARGE = BERT_LARGE
ELECTRA_SMALL_GENERATOR = ELECTRA_SMALL
ELECTRA_BASE_GENERATOR = replace(ELECTRA_BASE, width=256, heads=4, embed=768)
ELECTRA_LARGE_GENERATOR = replace(ELECTRA_LARGE, width=256, heads=4, embed=1024)

# -- Encoder-decoders --------------------------------------------------------------------------------------------------


def twice(model: Transformer) -> EncoderDecoder:
    """Return an encoder-decoder of two equal stacks."""
    return EncoderDecoder(encoder=model, decoder=model)


def t5(width: int, mlp: int, head: int, heads: int, depth: int) -> EncoderDecoder:
    """T5 1.0 (Raffel et al. 2020): relu, tied and scaled logits, no biases, attention without a scale."""
    return twice(
        Transformer(
            vocab=32128, context=512, width=width, mlp=mlp, head=head, heads=heads, depth=depth, activation="relu",
            norm="rms", eps=1e-6, positions="bucket", bias=False, scale=1.0, logit_scale="rsqrt_width", last_dropout=True,
            init=1.0, init_fan_in=True, init_scale_depth=False,
        )
    )  # fmt: skip


def t5_1_1(width: int, mlp: int, head: int, heads: int, depth: int) -> EncoderDecoder:
    """T5 1.1: gated gelu, an untied vocabulary projection, unscaled logits."""
    model = t5(width, mlp, head, heads, depth).decoder
    return twice(replace(model, activation="geglu_tanh", tied=False, logit_scale=1.0))


T5_SMALL = t5(512, 2048, 64, 8, 6)
T5_BASE = t5(768, 3072, 64, 12, 12)
T5_LARGE = t5(1024, 4096, 64, 16, 24)
T5_3B = t5(1024, 16384, 128, 32, 24)
T5_11B = t5(1024, 65536, 128, 128, 24)
T5_1_1_SMALL = t5_1_1(512, 1024, 64, 6, 8)
T5_1_1_BASE = t5_1_1(768, 2048, 64, 12, 12)
T5_1_1_LARGE = t5_1_1(1024, 2816, 64, 16, 24)
T5_1_1_XL = t5_1_1(2048, 5120, 64, 32, 24)
T5_1_1_XXL = t5_1_1(4096, 10240, 64, 64, 24)

# Lewis et al. 2020 (fairseq): post-norm, positions from row 2, a norm on the embeddings of both stacks.
BART_BASE = twice(
    Transformer(
        vocab=50265, context=1024, offset=2, width=768, depth=6, heads=12, activation="gelu", placement="post",
        embed_norm=True, init_positions=0.02, init_scale_depth=False,
    )
)  # fmt: skip
BART_LARGE = twice(replace(BART_BASE.decoder, width=1024, depth=12, heads=16))

# Vaswani et al. 2017, table 3; a joint vocabulary of about 37,000 for English-German.
TRANSFORMER_BASE = twice(
    Transformer(
        vocab=37000, context=1024, width=512, depth=6, heads=8, mlp=2048, activation="relu", placement="post",
        positions="sinusoidal", embed_scale="sqrt_width", init=512**-0.5, init_scale_depth=False,
    )
)  # fmt: skip
TRANSFORMER_BIG = twice(
    replace(
        TRANSFORMER_BASE.decoder, width=1024, heads=16, mlp=4096, embed_scale="sqrt_width", init=1024**-0.5
    )
)  # fmt: skip

# Ghazvininejad et al. 2019: the decoder sees all of the target.
MASK_PREDICT_BASE = twice(
    Transformer(
        vocab=37000, context=1024, width=512, depth=6, heads=8, mlp=2048, activation="gelu", placement="post", eps=1e-12,
        init_positions=0.02, init_scale_depth=False,
    )
)  # fmt: skip

# Yang et al. 2019, https://github.com/zihangdai/xlnet: cased base and large.
XLNET_BASE = XLNet(vocab=32_000, context=512, memory=384, width=768, depth=12, heads=12)
XLNET_LARGE = replace(XLNET_BASE, width=1024, depth=24, heads=16)

# Dai et al. 2019, https://github.com/kimiyoung/transformer-xl, run_wt103_{base,large}.sh and run_enwik8_{base,large}.sh:
# segment and memory of training. The base scripts share u and v between layers, the released large models do not.
TRANSFORMER_XL_BASE = TransformerXL(
    vocab=267_735, context=150, memory=150, width=410, depth=16, heads=10, head=41, mlp=2100,
    cutoffs=(20_000, 40_000, 200_000), shared_biases=True, dropout=0.1, position_dropout=0.1,
)  # fmt: skip
TRANSFORMER_XL_LARGE = TransformerXL(
    vocab=267_735, context=384, memory=384, width=1024, depth=18, heads=16, mlp=4096,
    cutoffs=(20_000, 40_000, 200_000), divide=4, dropout=0.2, position_dropout=0.2, attention_dropout=0.2,
)  # fmt: skip
TRANSFORMER_XL_ENWIK8 = TransformerXL(
    context=512, memory=512, width=512, depth=12, heads=8, mlp=2048, shared_biases=True, dropout=0.1, position_dropout=0.1
)
TRANSFORMER_XL_ENWIK8_LARGE = replace(
    TRANSFORMER_XL_ENWIK8, context=768, memory=768, width=1024, depth=24, mlp=3072, shared_biases=False,
    dropout=0.15, position_dropout=0.15, attention_dropout=0.15,
)  # fmt: skip
