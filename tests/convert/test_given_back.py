"""What a folder says beside its weights is kept and said; networks trained here in published shapes are given away."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.convert.convert import flat, load, save
from lm.convert.runs import export_run, import_run, kind_of, summary_of
from lm.data.tokenizer.tokenizer import BytePair, Bytes, WordPiece
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.denoise import Denoise
from lm.objectives.seq2seq import Seq2seq
from lm.objectives.span import Span
from lm.sharding import unbox
from tests.convert.test_families import CASES, make

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def changed(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


# -- numbers added to the logits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "biased"), [("bart", True), ("mbart", True), ("bart", False), ("mbart", False)])
def test_logits_bias(name, biased, tmp_path):
    theirs = make(name, tmp_path)
    if biased:
        theirs.final_logits_bias.copy_(torch.linspace(-1, 1, 61))
        theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.objective.model.decoder.head_bias == biased
    assert ("head_bias" in loaded.params) == biased
    save(loaded.objective, loaded.params, Bytes().build(lambda: ()), tmp_path / "again", "", loaded.kind)
    again = type(theirs).from_pretrained(tmp_path / "again")
    assert torch.equal(again.final_logits_bias, theirs.final_logits_bias)
    assert bool(again.final_logits_bias.any()) == biased
    ids = np.random.default_rng(0).integers(3, 50, (2, 7))
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids), decoder_input_ids=torch.tensor(ids)).logits
    model, variables = Seq2Seq(loaded.objective.model), {"params": loaded.params}
    found = model.apply(variables, method="head").logits(model.apply(variables, ids, ids))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


# -- what a decoder begins with -----------------------------------------------------------------------------------------


def row(objective) -> dict:
    """A row of one pair, as the objective lays it out."""
    documents = [(np.array([11, 12, 13], np.int32), np.array([21, 22], np.int32))]
    return objective.corrupt(np.random.default_rng(0), {"documents": documents})


@pytest.mark.parametrize(
    ("start", "first"),
    [(None, 7), (3, 3)],
)
def test_targets_begin_with(start, first):
    model = Transformer(vocab=30, context=8, width=8, depth=1, heads=2)
    found = row(Seq2seq(model=EncoderDecoder(encoder=model, decoder=model), end=7, start=start))
    assert found["tokens"].tolist() == [first, 21, 22, 0, 0, 0, 0, 0]
    assert found["targets"].tolist() == [21, 22, 7, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("name", "start"), [("marian", 60), ("bart", None), ("mbart", 9)])
def test_the_start_is_the_files(name, start, tmp_path):
    """Marian's is padding, mBART's a language, BART's the end; back it goes as it came."""
    make(name, tmp_path)
    if name == "mbart":
        changed(tmp_path, decoder_start_token_id=start)
    loaded = load(tmp_path)
    assert loaded.objective.start == start
    save(loaded.objective, loaded.params, Bytes().build(lambda: ()), tmp_path / "again", "", loaded.kind)
    before, after = config_of(tmp_path), config_of(tmp_path / "again")
    assert before["decoder_start_token_id"] == after["decoder_start_token_id"]
    assert before["eos_token_id"] == after["eos_token_id"]
    assert any("language" in line for line in summary_of(loaded, "x")) == (name == "mbart")


# -- what stays out is said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "architecture", "left"), [
    ("bert", "BertForMaskedLM", {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}),
    ("albert", "AlbertForMaskedLM", {f"{at}.{kind}" for at in ("albert.pooler", "sop_classifier.classifier")
                                     for kind in ("weight", "bias")}),
])  # fmt: skip
def test_weights_without_a_place(name, architecture, left, tmp_path):
    """Heads that the objective has not; copies and buffers are no weights."""
    make(name, tmp_path)
    assert load(tmp_path).left == ()
    changed(tmp_path, architectures=[architecture])
    if name == "bert":  # its own head for pairs says what the file is
        from safetensors.torch import load_file, save_file

        tensors = load_file(tmp_path / "model.safetensors")
        save_file({k: x for k, x in tensors.items() if "seq_relationship" not in k}, tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    assert set(loaded.left) == left
    assert any("left out" in line for line in summary_of(loaded, "x"))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("bert", "albert")])
def test_nothing_else_is_left(name, tmp_path):
    make(name, tmp_path)
    loaded = load(tmp_path)
    assert not [one for one in loaded.left if "pooler" not in one]
    assert loaded.kind == config_of(tmp_path)["model_type"]


def test_quantised_weights_are_refused(tmp_path):
    make("llama", tmp_path)
    changed(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match=r"quantization_config=.*gptq"):
        load(tmp_path)


def test_dialogpt(tmp_path):
    """GPT-2 under its name: half precision in a pickle, masks among the tensors, the head under another name."""
    theirs = make("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = {k: x.half() for k, x in theirs.state_dict().items() if k != "lm_head.weight"}
    tensors["lm_head.decoder.weight"] = tensors["transformer.wte.weight"]
    for i in range(3):
        tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 17, 17)
        tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    loaded = load(tmp_path)
    assert loaded.left == loaded.drawn == ()
    expected = theirs.half().float().state_dict()["transformer.wte.weight"]
    np.testing.assert_array_equal(loaded.params["embed"]["table"], expected.numpy())


# -- families that look alike -------------------------------------------------------------------------------------------


def test_a_run_goes_back_as_what_it_came_as(tmp_path):
    """Also by a run that started from it, or straight from the folder."""
    fields = {**CASES["mt5"][1], "vocab_size": 160}
    transformers.MT5ForConditionalGeneration(transformers.MT5Config(**fields)).save_pretrained(tmp_path / "hf")
    names = ["<pad>", "</s>", "<unk>", *[f"<extra_id_{k}>" for k in range(100)]]
    words = {name: i for i, name in enumerate(names)} | {chr(97 + i): len(names) + i for i in range(26)}
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    core = Core(models.WordLevel(words, unk_token="<unk>"))
    core.add_special_tokens(names)
    core.save(str(tmp_path / "hf" / "tokenizer.json"))
    import_run(str(tmp_path / "hf"), tmp_path / "run")
    assert kind_of(tmp_path / "run") == "mt5"
    export_run(tmp_path / "run", tmp_path / "out")
    assert config_of(tmp_path / "out")["model_type"] == "mt5"
    later = json.loads((tmp_path / "run" / "config.json").read_text())
    for start in ("run", "hf"):
        (tmp_path / f"after {start}").mkdir()
        (tmp_path / f"after {start}" / "config.json").write_text(json.dumps({**later, "start": str(tmp_path / start)}))
        assert kind_of(tmp_path / f"after {start}") == "mt5"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(json.dumps(later))
    assert kind_of(tmp_path / "own") == ""


# -- trained here -------------------------------------------------------------------------------------------------------

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen jugs."


@pytest.fixture(scope="module")
def pieces():
    return WordPiece(vocab=150).build(lambda: iter([TEXT]))


def drawn(objective, seed=0):
    """Every parameter random."""
    batch = {**dict.fromkeys(("tokens", "source", "places"), np.zeros((1, 8), np.int32)), "sentences": np.zeros((1, 1, 8), int)}
    shapes = flat(unbox(jax.eval_shape(objective.init, jax.random.key(0), batch)))
    rng = np.random.default_rng(seed)
    from lm.convert.convert import nested

    one = {n: (n.endswith("scale") + 0.1 * rng.normal(size=x.shape)).astype(np.float32) for n, x in shapes.items()}
    return nested(one)


def twice(**fields):
    model = Transformer(**{"width": 16, "depth": 2, "heads": 2, "mlp": 24, "context": 32, "init_scale_depth": False, **fields})
    return EncoderDecoder(encoder=model, decoder=model)


BART = {"placement": "post", "offset": 2, "embed_norm": True, "activation": "gelu"}
T5 = {"norm": "rms", "positions": "bucket", "bias": False, "scale": 1.0, "activation": "geglu_tanh", "tied": False, "eps": 1e-6,
      "context": 48, "last_dropout": True, "init_fan_in": True}  # fmt: skip
MARIAN = {"placement": "post", "positions": "sinusoidal", "embed_scale": 4.0, "activation": "relu"}
OWN = {
    "bart": Denoise(model=twice(**BART)),
    "bart, fine-tuned": Seq2seq(model=twice(**BART)),
    "t5": Span(model=twice(**T5)),
    "t5, fine-tuned": Seq2seq(model=twice(**T5)),
    "marian": Seq2seq(model=twice(**MARIAN)),
    "marian, padding first": Seq2seq(model=twice(**MARIAN, head_bias=True), start=0),
}


@pytest.mark.parametrize("name", OWN)
def test_own_encoder_decoders(name, pieces, tmp_path):
    """Their loss of our labels, with the decoder's input made by them, is our loss of our row."""
    objective = OWN[name]
    tokenizer = pieces.with_special(objective.special)
    objective = objective.resolve(tokenizer)
    params = drawn(objective)
    save(objective, params, tokenizer, tmp_path / "out", "")
    settings = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert settings.model_type == name.split(",")[0]
    theirs = getattr(transformers, settings.architectures[0]).from_pretrained(tmp_path / "out").eval()
    ids = tokenizer.encode(TEXT)
    if isinstance(objective, Seq2seq):
        record = {"documents": [(ids[:12], ids[12:20])]}
    else:
        tokens = ids[: objective.records.length]
        segments = np.ones(len(tokens), np.int32)
        room = objective.records.length - len(tokens)
        record = {"tokens": np.pad(tokens, (0, room)), "segments": np.pad(segments, (0, room))}
        record["weights"] = record["segments"].astype(np.float32)
    example = objective.corrupt(np.random.default_rng(1), record)
    sums, _ = jax.jit(objective.loss)(params, {k: x[None] for k, x in example.items()}, None, None)
    source, wanted = (example[k][example[s] > 0][None] for k, s in (("source", "source_segments"), ("targets", "segments")))
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor(source, dtype=torch.long), labels=torch.tensor(wanted, dtype=torch.long))
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], found.loss.item(), rtol=1e-4)
    assert settings.eos_token_id == objective.end
    assert settings.pad_token_id == tokenizer.special_id("[PAD]")


def test_own_decoder_ends_where_text_does(tmp_path):
    """Their generation stops at our separator; without padding no token is taken for it."""
    tokenizer = BytePair(vocab=300).build(lambda: iter([TEXT]))
    model = Transformer(vocab=304, context=16, width=16, depth=2, heads=2)
    objective = Causal(model=model).resolve(tokenizer)
    save(objective, drawn(objective), tokenizer, tmp_path / "out", "")
    settings = config_of(tmp_path / "out")
    assert settings["eos_token_id"] == settings["pad_token_id"] == tokenizer.separator
    characters = dataclasses.replace(objective, model=dataclasses.replace(model, vocab=200))
    save(characters, drawn(characters), Bytes().build(lambda: ()), tmp_path / "bytes", "")  # its separator is 256
    assert config_of(tmp_path / "bytes")["pad_token_id"] is None


def test_maximal_update_parametrisation_is_not_lost():
    """At the tuned width it is plain; elsewhere theirs has no place for its factors."""
    from lm.convert.convert import family_for

    model = Transformer(vocab=50, width=32, heads=2, depth=1, mup_base=32)
    assert family_for(Causal(model=model))[1]["model_type"] == "gpt2"
    with pytest.raises(UserError, match="mup_base=16"):
        family_for(Causal(model=dataclasses.replace(model, mup_base=16)))
