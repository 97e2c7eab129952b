"""Folders written here as transformers meets them: its AutoTokenizer gives our ids, its `generate` our text."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm.config import load as read_config
from lm.convert.convert import family_for, load, save
from lm.convert.runs import opened
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, Tokenizer, WordPiece
from lm.decode.generate import row_keys
from lm.decode.prefill import opened_steps
from lm.decode.sampling import Sampling
from lm.decode.writer import continue_tokens
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.contrastive import Contrastive
from lm.objectives.denoise import Denoise
from lm.objectives.masked import Masked
from lm.objectives.prefix import Prefix
from lm.objectives.replaced import Replaced
from lm.objectives.seq2seq import Seq2seq
from lm.objectives.span import Span
from tests.convert.test_given_back import BART, T5, TEXT, drawn, twice
from tests.marks import quick

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "context": 32}
LLAMA = {**SIZES, "norm": "rms", "positions": "rotary", "activation": "swiglu", "bias": False, "tied": False, "eps": 1e-6}
BERT = {**SIZES, "placement": "post", "embed_norm": True, "transform": True, "head_bias": True, "types": 2, "eps": 1e-12,
        "activation": "gelu"}  # fmt: skip
TOKENIZERS = {"bytes": Bytes(), "characters": Characters(), "bpe": BytePair(vocab=300), "wordpiece": WordPiece(vocab=150)}
OBJECTIVES = {
    "gpt2": Causal(model=Transformer(**SIZES)),
    "llama": Causal(model=Transformer(**LLAMA)),
    "bert": Masked(model=Transformer(**BERT)),
    "roberta": Masked(model=Transformer(**{**BERT, "offset": 2, "types": 1})),
    "t5": Span(model=twice(**T5)),
    "bart": Denoise(model=twice(**BART)),
    "bart, fine-tuned": Seq2seq(model=twice(**BART)),
}
PAIRS = [(kind, name) for name in OBJECTIVES for kind in TOKENIZERS if kind != "characters" or name in ("gpt2", "llama")]
QUICK = [("characters", "gpt2"), ("bpe", "llama"), ("bpe", "t5"), ("wordpiece", "bert"), ("bpe", "bart"),
         ("wordpiece", "roberta")]  # fmt: skip
TEXTS = ("The quick brown fox", "jumps over a lazy dog.", "Pack my box with five")


def exported(kind, name, path):
    """Write a random model of a family with a tokenizer: (objective, params, tokenizer)."""
    objective = OBJECTIVES[name]
    tokenizer = TOKENIZERS[kind].build(lambda: iter([TEXT])).with_special(objective.special)
    objective = objective.resolve(tokenizer)
    params = drawn(objective)
    save(objective, params, tokenizer, path, "")
    return objective, params, tokenizer


def ours(objective, tokenizer, text):
    if objective.writes:
        prompt = objective.prompt(tokenizer, text)
        return (prompt.tokens if prompt.source is None else prompt.source).tolist()
    cls, sep = tokenizer.special_id("[CLS]"), tokenizer.special_id("[SEP]")
    return [cls, *tokenizer.encode(text).tolist(), sep]


def greedy(objective, params, prompt, stops, new=8):
    steps = opened_steps(objective)
    rows = continue_tokens(
        steps, steps.prepare(params, 1), [prompt], row_keys(0, [prompt], [0], 1), sampling=Sampling(strategy="greedy"),
        new=new, stops=stops,
    )  # fmt: skip
    return np.asarray(rows[0][0]).tolist()


@pytest.mark.parametrize(("kind", "name"), quick(PAIRS, QUICK))
def test_their_tokenizer_and_their_text(kind, name, tmp_path):
    objective, params, tokenizer = exported(kind, name, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    for text in [t for t in TEXTS if kind != "characters" or set(t) <= set(TEXT)]:
        ids = ours(objective, tokenizer, text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True).strip() == tokenizer.decode(ids).strip()
    for role, token in (("pad", "[PAD]"), ("mask", "[MASK]"), ("cls", "[CLS]"), ("sep", "[SEP]")):
        if kind == "wordpiece" or token in objective.special:
            assert getattr(theirs, f"{role}_token_id") == tokenizer.special_id(token)
    if name != "roberta" and (kind != "characters" or name not in ("gpt2", "llama")):
        assert config.pad_token_id == theirs.pad_token_id
    again = Tokenizer.load(tmp_path / "out")
    assert again.separator == tokenizer.separator
    assert again.vocab == tokenizer.vocab
    if name not in ("t5", "bart, fine-tuned"):  # which need fewer special tokens here than one that is read
        opened(None, str(tmp_path / "out"))
    if not objective.writes:
        batch = theirs(TEXTS[0], TEXTS[1])
        assert batch["input_ids"].count(tokenizer.special_id("[SEP]")) >= 2
        assert set(batch) == {"input_ids", "attention_mask"} | ({"token_type_ids"} if name == "bert" else set())
        return
    model = getattr(transformers, config.architectures[0]).from_pretrained(tmp_path / "out").eval()
    assert model.generation_config.eos_token_id == config.eos_token_id
    text = next(t for t in TEXTS if kind != "characters" or set(t) <= set(TEXT))
    with torch.no_grad():
        written = model.generate(**theirs(text, return_tensors="pt"), max_new_tokens=8, do_sample=False)[0].tolist()
    prompt = objective.prompt(tokenizer, text)
    wanted = greedy(objective, params, prompt, objective.stops(tokenizer))
    start = len(prompt.tokens)
    assert written[:start] == prompt.tokens.tolist()
    wanted = wanted[: 7 if name.startswith("bart") else 8]  # whose last token is made to be the end
    assert written[start : start + len(wanted)] == wanted
    assert set(written[start + len(wanted) :]) <= {*objective.stops(tokenizer), config.pad_token_id}


def test_a_prefix_lm_is_no_llama(tmp_path):
    """Its prompt is read in both directions: as a causal Llama its logits would be others."""
    prefix = Prefix(model=Transformer(**LLAMA, vocab=60))
    with pytest.raises(UserError, match="prompt in both directions"):
        family_for(prefix)
    model = twice(**{**T5, "vocab": 60})
    assert family_for(Prefix(model=model))[1]["model_type"] == "t5"


def test_a_refusal_names_the_nearest_family():
    model = Transformer(**{**SIZES, "vocab": 60, "positions": "alibi", "parallel": True, "dropout": 0.2})
    with pytest.raises(UserError) as error:
        family_for(Causal(model=model))
    said = str(error.value)
    assert "nearest: gpt2" in said
    assert "objective.model.positions='alibi' (needs 'learned')" in said
    assert "objective.model.parallel=True (needs False)" in said
    assert said.count("needs") == 2
    assert len(said) < 300


@pytest.mark.parametrize("heads", [{}, {"transform": True, "head_bias": True}])
def test_electra_whatever_its_discriminator_does_not_read(heads, tmp_path):
    model = Transformer(**{**BERT, "transform": False, "head_bias": False, "embed": 8, "eps": 1e-12, "heads": 4, **heads})
    tokenizer = WordPiece(vocab=150).build(lambda: iter([TEXT]))
    objective = Replaced(model=model).resolve(tokenizer)
    params = drawn(objective)
    save(objective, params, tokenizer, tmp_path / "out", "")
    theirs, info = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = np.random.default_rng(0).integers(5, 90, (2, 9)).astype(np.int32)
    with torch.no_grad():
        found = theirs(torch.tensor(ids, dtype=torch.long)).logits
    place = np.broadcast_to(np.arange(9), ids.shape), np.ones_like(ids), np.zeros_like(ids)
    logits, _ = objective.network.apply({"params": params}, ids, *place, None, method="judge")
    np.testing.assert_allclose(logits, found, atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "cls_before_pooler", "avg"])
def test_simcse_embeds_in_their_class(pooling, tmp_path):
    model = Transformer(**{**BERT, "transform": False, "head_bias": False})
    tokenizer = WordPiece(vocab=150).build(lambda: iter([TEXT]))
    objective = Contrastive(model=model, pooling=pooling, mlp_only_train=False).resolve(tokenizer)
    params = drawn(objective)
    left = save(objective, params, tokenizer, tmp_path / "out", "")
    assert not left
    theirs, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert all("pooler" in name for name in info["missing_keys"])
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        found = theirs(**ids)
    tokens = np.full((1, 1, objective.length), objective.pad, np.int32)
    size = ids["input_ids"].shape[1]
    tokens[0, 0, :size] = ids["input_ids"][0]
    batch = {"sentences": tokens, "segments": (tokens != objective.pad).astype(np.int32)}
    mine = objective.embed(params, batch, None, drop=False)[0, 0]
    expected = found.last_hidden_state[0]
    expected = {"cls": found.pooler_output[0], "cls_before_pooler": expected[0], "avg": expected.mean(0)}[pooling]
    np.testing.assert_allclose(mine, expected / expected.norm(), atol=1e-4)


@pytest.mark.parametrize("pad", [1, 0, 5])
def test_roberta_with_another_padding(pad, tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "vocab_size": 61}
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**sizes, max_position_embeddings=20, pad_token_id=pad, type_vocab_size=1)
    theirs = transformers.RobertaForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    loaded = load(tmp_path / "hf")
    assert loaded.objective.model.offset == pad + 1
    assert loaded.objective.model.context == 19 - pad
    ids = np.random.default_rng(0).integers(6, 60, (2, 9))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    variables, network = {"params": loaded.params}, Model(loaded.objective.model)
    h_BTD, _ = network.apply(variables, ids, causal=False)
    logits = network.apply(variables, method="head").logits(network.apply(variables, h_BTD, method="transform"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    save(loaded.objective, loaded.params, Bytes().build(lambda: ()), tmp_path / "again", "")
    for (name, a), b in zip(
        theirs.state_dict().items(), transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "again").state_dict().values()
    ):
        assert torch.equal(a, b), name


def test_roberta_counts_from_the_padding_of_its_tokenizer(tmp_path):
    """Ours is id 0, and a table made for padding 1 would take our [UNK] for padding: positions of theirs would stand still."""
    objective, params, tokenizer = exported("wordpiece", "roberta", tmp_path / "out")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.pad_token_id == tokenizer.special_id("[PAD]") == 0
    ids = np.array([[2, 7, tokenizer.special_id("[UNK]"), 9, 3]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    variables, network = {"params": params}, Model(objective.model)
    h_BTD, _ = network.apply(variables, ids, causal=False)
    logits = network.apply(variables, method="head").logits(network.apply(variables, h_BTD, method="transform"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_heads_that_nobody_asks_are_left_out_and_parts_of_the_network_are_not(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    exported("bpe", "gpt2", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "value_head.weight": torch.ones(3, 16), "summary.bias": torch.ones(3)}, file)
    assert load(tmp_path / "out").left == ("summary.bias", "value_head.weight")
    opened(None, str(tmp_path / "out"))
    assert "left out: summary.bias, value_head.weight" in capsys.readouterr().err
    for name in ("transformer.h.0.attn.c_more.weight", "lm_head.bias", "h.1.extra.weight", "wte.scale"):
        save_file({**tensors, name: torch.ones(3)}, file)
        with pytest.raises(UserError, match="does not know"):
            load(tmp_path / "out")


def test_sentinels_that_are_missing(tmp_path):
    exported("bpe", "t5", tmp_path / "out")
    few = BytePair(vocab=300).build(lambda: iter([TEXT])).with_special(["[PAD]", "[SEP]", "<extra_id_0>"])
    few.save(tmp_path / "out" / "tokenizer.json")
    (tmp_path / "out" / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"special tokens.*<extra_id_.*--pad_vocab=1 --output=FOLDER") as error:
        opened(None, str(tmp_path / "out"))
    assert "with_special" not in str(error.value)
    from lm.convert.vocabulary import convert

    convert(str(tmp_path / "out"), None, str(tmp_path / "more"), multiple=1)
    assert opened(None, str(tmp_path / "more"))[0].objective.sentinels


CONFIGS = [path for path in sorted(Path("configs").glob("*.py")) if re.search(r"_(base|small)$", path.stem)]
PUBLISHED = [path for path in CONFIGS if path.stem != "mask_predict_base"]  # no class of transformers predicts lengths


def narrowed(model):
    if isinstance(model, EncoderDecoder):
        return replace(model, encoder=narrowed(model.encoder), decoder=narrowed(model.decoder))
    return replace(model, width=model.width // 4 * 2)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_config_of_half_the_width_has_the_same_family(path):
    """Factors that follow the width (of T5's logits, the Transformer's embeddings) follow it."""
    objective = read_config(f"{path}:text=README.md" if "text:" in path.read_text() else str(path)).objective
    family, _ = family_for(objective)
    assert family_for(replace(objective, model=narrowed(objective.model)))[0] is family


def test_factors_are_numbers_of_the_width():
    model = Transformer(width=64, heads=4, embed_scale="sqrt_width", logit_scale="rsqrt_width")
    assert (model.embed_factor, model.logit_factor) == (8.0, 0.125)
    with pytest.raises(UserError, match="embed_scale"):
        Transformer(embed_scale=float("inf"))
