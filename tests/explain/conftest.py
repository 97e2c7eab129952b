"""Random published models, which transformers and torch run beside ours."""

import pytest

from lm.data.tokenizer.tokenizer import Bytes, WordPiece
from tests.models.reference import stirred

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BERT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 37,
        "max_position_embeddings": 40, "attn_implementation": "eager"}  # fmt: skip
T5 = {"d_model": 20, "d_kv": 6, "d_ff": 34, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3,
      "decoder_start_token_id": 0, "attn_implementation": "eager"}  # fmt: skip
LLAMA = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 37, "max_position_embeddings": 64, "attn_implementation": "eager"}  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Random models of each kind with tokenizers: name -> (theirs, folder)."""
    torch.manual_seed(0)  # made before the seed of the module that is first to ask
    root, made = tmp_path_factory.mktemp("models"), {}
    plain = Bytes().build(lambda: ())
    words = WordPiece(vocab=100).build(lambda: ["the cat sat on the mat and the dog sat by the cat" * 3])
    sentinels = plain.with_special(["[PAD]", "[SEP]", *(f"<extra_id_{i}>" for i in range(100))])
    gpt = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64, "attn_implementation": "eager"}
    cases = {
        "gpt2": ("GPT2LMHeadModel", gpt, plain),
        "llama": ("LlamaForCausalLM", LLAMA, plain),
        "bert": ("BertForMaskedLM", BERT, words),
        "t5": ("T5ForConditionalGeneration", T5, sentinels),
    }
    for seed, (name, (architecture, fields, tokenizer)) in enumerate(cases.items()):
        cls = getattr(transformers, architecture)
        model = stirred(torch, cls(cls.config_class(vocab_size=tokenizer.vocab, **fields)), seed)
        model.save_pretrained(root / name)
        tokenizer.save(root / name / "tokenizer.json")
        made[name] = model, root / name
    return made
