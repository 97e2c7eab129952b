"""Folders of the reference library in and out: the same logits, and the same bytes back."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import load as read_file
from lm.convert.convert import flat, load, save
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.model import Model
from lm.models.two_stream import TwoStream, XLNet
from lm.objectives.replaced import Replaced
from lm.sharding import unbox
from tests.marks import quick

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 37}
BERT = {**SMALL, "max_position_embeddings": 20, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = {**SMALL, "max_position_embeddings": 32, "head_dim": 8}
STAR = {**{k: v for k, v in LLAMA.items() if k != "head_dim"}, "residual_dropout": 0.0, "embedding_dropout": 0.0}
GEMMA2 = {**LLAMA, "num_key_value_heads": 2, "num_hidden_layers": 5, "head_dim": 10, "sliding_window": 4,
          "query_pre_attn_scalar": 14, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}  # fmt: skip
GEMMA3 = {**LLAMA, "num_key_value_heads": 2, "num_hidden_layers": 7, "head_dim": 10, "sliding_window": 4,
          "query_pre_attn_scalar": 14}  # fmt: skip
STRETCHED = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 600.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 30.0}}  # fmt: skip
T5 = {"vocab_size": 61, "d_model": 20, "d_kv": 6, "d_ff": 34, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3,
      "decoder_start_token_id": 0, "dropout_rate": 0.0}  # fmt: skip
BART = {"vocab_size": 61, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 3, "encoder_ffn_dim": 31, "decoder_ffn_dim": 29, "max_position_embeddings": 18,
        "dropout": 0.0}  # fmt: skip
ALBERT = {**BERT, "embedding_size": 10}
DISTIL = {"vocab_size": 61, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 37, "max_position_embeddings": 20,
          "dropout": 0.0, "attention_dropout": 0.0}  # fmt: skip
MARIAN = {**BART, "pad_token_id": 60, "decoder_start_token_id": 60}
XLNET = {"vocab_size": 61, "d_model": 24, "n_layer": 3, "n_head": 4, "d_inner": 37, "dropout": 0.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 500.0}  # fmt: skip

CASES = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 53, "n_embd": 20, "n_layer": 3, "n_head": 5, "n_positions": 17}),
    "gpt2, odd": ("GPT2LMHeadModel", {"vocab_size": 53, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 17,
                                      "n_inner": 19, "activation_function": "relu"}),
    "gpt1": ("OpenAIGPTLMHeadModel", {"vocab_size": 53, "n_embd": 20, "n_layer": 2, "n_head": 2, "n_positions": 17}),
    "bert": ("BertForPreTraining", BERT),
    "bert, masked": ("BertForMaskedLM", {**BERT, "hidden_act": "relu", "type_vocab_size": 3}),
    "roberta": ("RobertaForMaskedLM", {**BERT, "pad_token_id": 1, "type_vocab_size": 1}),
    "ernie, masked": ("ErnieForMaskedLM", BERT),
    "ernie": ("ErnieForPreTraining", {**BERT, "hidden_act": "relu"}),
    "megatron bert": ("MegatronBertForPreTraining", {**BERT, "hidden_act": "relu"}),
    "megatron bert, masked": ("MegatronBertForMaskedLM", BERT),
    "albert": ("AlbertForPreTraining", ALBERT),
    "albert, masked": ("AlbertForMaskedLM", {**ALBERT, "embedding_size": 30, "hidden_act": "gelu", "num_hidden_layers": 1}),
    "electra, generator": ("ElectraForMaskedLM", {**ALBERT, "type_vocab_size": 3}),
    "electra, wide tables": ("ElectraForMaskedLM", {**ALBERT, "embedding_size": 34, "num_attention_heads": 3}),
    "electra, generator, not projected": ("ElectraForMaskedLM", {**ALBERT, "embedding_size": 24}),
    "electra": ("ElectraForPreTraining", ALBERT),
    "electra, not projected": ("ElectraForPreTraining", {**ALBERT, "embedding_size": 24, "hidden_act": "relu"}),
    "distilbert": ("DistilBertForMaskedLM", DISTIL),
    "distilbert, odd": ("DistilBertForMaskedLM", {**DISTIL, "sinusoidal_pos_embds": True, "activation": "relu", "n_heads": 3}),
    "llama": ("LlamaForCausalLM", {**LLAMA, "num_key_value_heads": 2}),
    "llama, tied and stretched": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "mistral": ("MistralForCausalLM", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 5}),
    "mistral, no window": ("MistralForCausalLM", {**LLAMA, "num_key_value_heads": 2, "sliding_window": None}),
    "smollm": ("LlamaForCausalLM", {**{k: v for k, v in LLAMA.items() if k != "head_dim"}, "tie_word_embeddings": True,
                                    "num_key_value_heads": 1, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"},
                                    "bos_token_id": 0, "eos_token_id": 0}),
    "qwen2": ("Qwen2ForCausalLM", {**{k: v for k, v in LLAMA.items() if k != "head_dim"}, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "num_key_value_heads": 1, "head_dim": 10, "tie_word_embeddings": True}),
    "starcoder2": ("Starcoder2ForCausalLM", {**STAR, "num_key_value_heads": 2}),
    "starcoder2, window": ("Starcoder2ForCausalLM", {**STAR, "num_key_value_heads": 4, "sliding_window": 5}),
    "gemma": ("GemmaForCausalLM", {**LLAMA, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA2),
    "gemma2, odd": ("Gemma2ForCausalLM", {**GEMMA2, "attn_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh",
                                          "layer_types": ["sliding_attention", "full_attention", "full_attention"],
                                          "num_hidden_layers": 3, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3ForCausalLM", GEMMA3),
    "gemma3, stretched": ("Gemma3ForCausalLM", {**GEMMA3, "rope_parameters": STRETCHED, "num_key_value_heads": 4}),
    "t5": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "relu"}),
    "t5 1.1": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "mt5": ("MT5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "mt5, untied": ("MT5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5 1.1, untied": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("BartForConditionalGeneration", BART),
    "bart, scaled": ("BartForConditionalGeneration", {**BART, "scale_embedding": True, "activation_function": "relu"}),
    "mbart": ("MBartForConditionalGeneration", {**BART, "scale_embedding": True}),
    "mbart, plain": ("MBartForConditionalGeneration", BART),
    "marian": ("MarianMTModel", {**MARIAN, "scale_embedding": True, "activation_function": "swish"}),
    "marian, plain": ("MarianMTModel", {**MARIAN, "d_model": 36}),
    "xlnet": ("XLNetLMHeadModel", XLNET),
    "xlnet, odd": ("XLNetLMHeadModel", {**XLNET, "clamp_len": 4, "mem_len": 7, "ff_activation": "relu", "n_head": 3}),
}  # fmt: skip


def make(name, folder, seed=0):
    """A reference model with random weights, none at its plain value, in a folder."""
    architecture, fields = CASES[name]
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if "untied" in name:  # their config.json says that it is tied all the same
            model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=generator))
        tensors = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for tensor in [*tensors, model.final_logits_bias] if architecture == "MarianMTModel" else tensors:
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(folder)
    return model


def logits_of(loaded, batch):
    """Our logits."""
    model, variables = loaded.objective.model, {"params": loaded.params}
    if isinstance(loaded.objective, Replaced):
        one = jnp.ones_like(batch["tokens"])
        places = one.cumsum(1) - one, one, one - one
        return loaded.objective.network.apply(variables, batch["tokens"], *places, method="judge")[0]
    if isinstance(model, XLNet):
        h, _, _ = TwoStream(model).apply(variables, batch["tokens"])
        return TwoStream(model).apply(variables, method="head").logits(h)
    if isinstance(model, EncoderDecoder):
        h = Seq2Seq(model).apply(variables, batch["source"], batch["tokens"])
        return Seq2Seq(model).apply(variables, method="head").logits(h)
    causal = loaded.objective.writes == "text"
    h, _ = Model(model).apply(variables, batch["tokens"], causal=causal)
    h = Model(model).apply(variables, h, method="transform")
    return Model(model).apply(variables, method="head").logits(h)


@pytest.mark.parametrize("name", CASES)
def test_logits(name, tmp_path):
    theirs = make(name, tmp_path)
    rng = np.random.default_rng(0)
    batch = {k: rng.integers(3, 50, (2, n)) for k, n in (("tokens", 11), ("source", 13))}
    ids = {k: torch.tensor(x) for k, x in batch.items()}
    with torch.no_grad():
        if theirs.config.is_encoder_decoder:
            found = theirs(input_ids=ids["source"], decoder_input_ids=ids["tokens"])
        else:
            found = theirs(input_ids=ids["tokens"])
    expected = getattr(found, "prediction_logits", None)
    expected = found.logits if expected is None else expected
    ours = jax.jit(lambda params: logits_of(load_with(loaded, params), batch))
    loaded = load(tmp_path)
    assert not [name for name in loaded.drawn if not name.startswith(("pooler", "pair", "generator"))]
    np.testing.assert_allclose(ours(loaded.params), expected.numpy(), atol=1e-4)


def load_with(loaded, params):
    return dataclasses.replace(loaded, params=params)


@pytest.mark.parametrize("name", quick(CASES, [name for name in CASES if "," not in name]))
def test_there_and_back(name, tmp_path):
    """Theirs, ours, theirs: the same names and bytes, loaded without a complaint; ours again: the same bytes."""
    theirs = make(name, tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    save(loaded.objective, loaded.params, Bytes().build(lambda: ()), tmp_path / "again", "", loaded.kind)
    kinds = [json.loads((tmp_path / name / "config.json").read_text())["model_type"] for name in ("theirs", "again")]
    assert kinds[0] == kinds[1]
    again, info = type(theirs).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key
    ours, twice = flat(loaded.params), flat(load(tmp_path / "again").params)
    assert ours.keys() == twice.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], twice[key])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups"),
        ("albert", {"embedding_size": 24}, "no projection"),
        ("bert", {"embedding_size": 8}, "embedding_size"),
        ("electra, generator", {"hidden_act": "relu"}, "hidden_act"),
        ("xlnet", {"untie_r": False}, "untie_r"),
        ("xlnet", {"d_head": 5}, "d_head"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("marian", {"decoder_vocab_size": 70}, "decoder_vocab_size"),
        ("marian", {"model_type": "bart"}, "lacks tensors"),
        ("mbart", {"normalize_before": False}, "normalize_before"),
        ("llama", {"model_type": "gemma2"}, "lacks tensors"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 5}, "chunked_attention"),
        ("gemma3", {"layer_types": ["full_attention"]}, "1 entries for 7 layers"),
        ("gemma3", {"model_type": "gemma3"}, "model_type"),
    ],
)
def test_what_another_family_has_is_named(name, change, said, tmp_path):
    make(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=said):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": None}, "model_type"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"activation_function": "mish"}, "mish"),
        ({"n_layer": 4}, "lacks tensors"),
        ({"n_layer": 2}, "does not know"),
        ({"n_embd": 10}, "config.json asks for"),
    ],
)
def test_what_cannot_be_read_is_named(change, said, tmp_path):
    make("gpt2", tmp_path)
    path = tmp_path / "config.json"
    settings = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    with pytest.raises(UserError, match=said):
        load(tmp_path)


LAPTOP = {
    "gpt_nano": "starcoder2", "gpt_shakespeare_char": "gpt2", "gpt_tiny": "gpt2", "bert_nano": "megatron-bert",
    "bert_nano:system=roberta": "megatron-bert",
}  # fmt: skip


@pytest.mark.parametrize(("config", "family"), LAPTOP.items())
def test_laptop_models_are_theirs(config, family, tmp_path):
    """Written without a complaint, loaded by transformers with the same logits, and read back as they were."""
    spec = f"{config}:text=README.md" if config == "gpt_shakespeare_char" else config
    objective = read_file(spec).objective
    small = {"vocab": 257, "context": 32, "width": 24, "heads": 4, "depth": 2, "dropout": 0.0}
    objective = dataclasses.replace(objective, model=dataclasses.replace(objective.model, **small))
    tokens = np.random.default_rng(0).integers(3, 250, (2, 11))
    params = unbox(objective.init(jax.random.key(0), {"tokens": tokens}))
    params = jax.tree.map(lambda x: np.asarray(x) + 0.05 * np.random.default_rng(1).normal(size=x.shape).astype("f"), params)
    save(objective, params, Bytes().build(lambda: ()), tmp_path / "out", "")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == family
    kind = transformers.AutoModelForCausalLM if objective.writes else transformers.AutoModelForMaskedLM
    theirs, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    # The class of the sentence-pair head has the masked-LM head, too; the class of the latter alone lacks the former.
    info["unexpected_keys"] = [key for key in info["unexpected_keys"] if not re.search("pooler|seq_relationship", key)]
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = load(tmp_path / "out")
    assert not again.left
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(logits_of(again, {"tokens": tokens}), expected, atol=1e-4)
    for name, leaf in flat(again.params).items():
        np.testing.assert_array_equal(leaf, flat(params)[name])


def test_a_bias_where_config_json_says_none_is_refused(tmp_path):
    model = make("starcoder2", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "use_bias": False}))
    assert model.config.use_bias
    with pytest.raises(UserError, match=r"does not know|not what config.json implies"):
        load(tmp_path)
