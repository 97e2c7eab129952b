"""Other vocabularies for trained weights: what both know stays bit for bit, new pieces are mixtures of old ones."""

import json

import jax
import numpy as np
import pytest

from lm.config import Config, Data, Every, Optimizer
from lm.convert import vocabulary
from lm.convert.convert import flat, load
from lm.convert.runs import opened
from lm.convert.spelling import Spelling, match
from lm.convert.vocabulary import convert, operate, plan
from lm.data.text.files import Text
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, Pretrained, Tokenizer, WordPiece
from lm.errors import UserError
from lm.evaluation.perplexity import text_scores
from lm.evaluation.subject import Subject
from lm.models.memory import TransformerXL
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.recurrent import Recurrent
from lm.objectives.replaced import Replaced
from lm.sharding import unbox
from lm.train import train
from tests.models.reference import draw, tiny
from tests.processes import command as start

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = "\n".join(
    f"the {a} {b} {c} near the old {d}, and then it {b} again; another {a} waited for the unwanted {d}."
    for a in ("keeper", "walker", "singer", "painter")
    for b in ("stopped", "walked", "painted", "waited", "listened")
    for c in ("slowly", "quickly", "quietly")
    for d in ("lighthouse", "harbour", "mountain", "garden")
)


def unigram(texts, vocab=120):
    """A SentencePiece-like tokenizer: ▁ before words, T5's names of special tokens."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers, trainers

    core = Core(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    core.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=vocab, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return Tokenizer(core)


@pytest.fixture(scope="module")
def vocabularies():
    texts = lambda: [TEXT]  # noqa: E731
    return {
        "bytes": Bytes().build(texts),
        "characters": Characters().build(texts),
        "small": BytePair(vocab=300).build(texts),
        "pairs": BytePair(vocab=380).build(texts),
        "words": WordPiece(vocab=150).build(texts),
        "unigram": unigram([TEXT]),
    }


# -- which piece is which ----------------------------------------------------------------------------------------------


def test_spellings_of_the_same_piece(vocabularies):
    pairs, words, one = (Spelling(vocabularies[name]) for name in ("pairs", "words", "unigram"))
    assert pairs.key("Ġthe") == one.key("▁the") == words.key("the") == " the"
    assert pairs.key("er") == one.key("er") == words.key("##er") == "er"
    assert words.key(",") == pairs.key(",") == ","
    assert pairs.key("Ã") == b"\xc3"
    assert one.key("<0xC3>") == b"\xc3"
    found = match(pairs, words)
    for name, i in words.names.items():
        if found.old[i] >= 0 and i not in words.specials:
            assert pairs.keys[int(found.old[i])].strip() == name.removeprefix("##"), name
    assert found.old[words.names["the"]] == pairs.names["Ġthe"]
    assert found.old[words.names["[SEP]"]] == vocabularies["pairs"].separator
    assert found.same > 20
    back = match(words, pairs)
    assert back.old[pairs.names["Ġthe"]] == words.names["the"]
    assert back.old[vocabularies["pairs"].separator] == words.names["[SEP]"]


def test_special_tokens_keep_their_roles(vocabularies):
    found = match(Spelling(vocabularies["words"]), Spelling(vocabularies["unigram"]))
    for ours, theirs in (("<pad>", "[PAD]"), ("</s>", "[SEP]"), ("<unk>", "[UNK]")):
        new, old = vocabularies["unigram"].token_id(ours), vocabularies["words"].token_id(theirs)
        assert found.old[new] == old
    assert found.roles == 3


def test_parts_spell_the_piece(vocabularies):
    """What a new piece is made of has its text; inside a word other pieces than at its beginning."""
    for old in ("pairs", "words", "unigram", "bytes", "characters"):
        spelling = Spelling(vocabularies[old])
        for key in (" lighthouse", " unwanted", "stopped", " the", "ing"):
            ids = spelling.compose(key)
            text = "".join(str(spelling.keys[i]) for i in ids)
            assert text.replace(" ", "") == key.strip(), (old, key, text)
            if old in ("pairs", "words", "bytes") and not (len(ids) == 1 and old == "words"):  # a word known whole only
                assert text == key, (old, key, text)
    assert Spelling(vocabularies["bytes"]).compose(b"\xc3") == [0xC3]


def test_a_word_that_nothing_spells(vocabularies):
    assert Spelling(vocabularies["words"]).compose(" \u4e00") == []
    assert Spelling(vocabularies["characters"]).compose("\u4e00") == []


# -- rows --------------------------------------------------------------------------------------------------------------


def model_of(tokenizer, **changes):
    objective = Causal(model=tiny(vocab=tokenizer.vocab, **changes))
    return objective, draw(objective.model)


def same(a, b):
    a, b = flat(a), flat(b)
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("name", ["bytes", "characters", "small", "words", "unigram"])
@pytest.mark.parametrize("extra", [0, 7])
def test_identity_is_bit_identical(name, extra, vocabularies):
    """Rows behind the tokenizer's last id too, and rows that pad the table."""
    tokenizer = vocabularies[name]
    objective = Causal(model=tiny(vocab=tokenizer.vocab + extra, tied=False, head_bias=True))
    params = draw(objective.model)
    again, found, _, lines = operate(objective, params, tokenizer, tokenizer)
    same(params, found)
    assert again.model == objective.model
    assert "composed: 0" in "\n".join(lines)


def test_every_leaf_of_two_networks(vocabularies):
    """ELECTRA has one table and a bias in its generator."""
    model = tiny(positions="learned", types=2, placement="post", embed_norm=True, vocab=0)
    objective = Replaced(model=model).resolve(vocabularies["words"])
    rng, shapes = np.random.default_rng(0), unbox(vocabulary.drawn(objective))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    bigger = vocabularies["words"].with_special(["<new>"])
    again, found, _, lines = operate(objective, params, vocabularies["words"], bigger, "mean")
    changed = {name for name, x in flat(found).items() if x.shape != flat(params)[name].shape}
    assert changed == {"embed/table", "generator/head_bias"}
    assert again.model.vocab == bigger.vocab
    for name in changed:
        np.testing.assert_array_equal(flat(found)[name][: model.vocab], flat(params)[name][: model.vocab])
    assert "embed/table, generator/head_bias" in lines[0]


def test_logits_of_kept_pieces(vocabularies):
    """The same text in pieces that both have: the logits of those are what they were."""
    old, new = vocabularies["small"], vocabularies["pairs"]
    objective, params = model_of(old, tied=False, head_bias=True, context=16)
    again, found, _, _ = operate(objective, params, old, new)
    kept = match(Spelling(old), Spelling(new)).old
    ours = [i for i in range(new.vocab) if kept[i] >= 0]
    tokens = np.array([ours[5:15]])
    a, b = (logits(o.model, p, t) for o, p, t in ((objective, params, kept[tokens]), (again, found, tokens)))
    np.testing.assert_array_equal(a[..., kept[ours]], b[..., ours])


def logits(model, params, tokens):
    @jax.jit
    def run(params):
        h, _ = Model(model).apply({"params": params}, tokens)
        return Model(model).apply({"params": params}, method="head").logits(h)

    return np.asarray(run(params))


def test_composed_rows_are_means(vocabularies):
    old, new = vocabularies["small"], vocabularies["pairs"]
    objective, params = model_of(old)
    _, found, _, lines = operate(objective, params, old, new)
    table, spelling = params["embed"]["table"], Spelling(new)
    composed = [i for i in spelling.keys if plan(old, new, old.vocab, "overlap").old[i] < 0]
    assert len(composed) > 30
    for i in composed:
        expected = table[old.encode(spelling.keys[i])].mean(0)
        np.testing.assert_allclose(found["embed"]["table"][i], expected, rtol=1e-6)
    assert f"composed: {len(composed)}" in "\n".join(lines)


def test_drawn_rows_have_the_old_mean_and_covariance():
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + [1, 2, 3, 4]).astype(np.float32)
    found = vocabulary.normal_like(table, 200_000, np.random.default_rng(1))
    np.testing.assert_allclose(found.mean(0), table.mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), np.cov(table.T, ddof=0), atol=0.06 * np.abs(np.cov(table.T)).max())
    bias = vocabulary.normal_like(table[:, 0], 100_000, np.random.default_rng(1))
    assert bias.shape == (100_000,)
    assert bias.std() == pytest.approx(table[:, 0].std(), rel=0.02)


def test_mean_and_random_draw_by_the_seed(vocabularies):
    old, new = vocabularies["small"], vocabularies["pairs"]
    objective, params = model_of(old)
    for how in ("mean", "random"):
        a, b, c = (operate(objective, params, old, new, how, seed=s)[1]["embed"]["table"] for s in (0, 0, 1))
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-3
        fresh = a[plan(old, new, old.vocab, how).old < 0]
        wide = params["embed"]["table"].std()
        assert fresh.std() == pytest.approx(wide if how == "mean" else objective.model.init, rel=0.25)


def test_filling_up(vocabularies):
    """Rows of no token have the mean logit of the others, not 0, which could be the highest."""
    old = vocabularies["small"]
    objective, params = model_of(old)
    again, found, _, lines = operate(objective, params, old, old, multiple=64)
    assert again.model.vocab == 320
    np.testing.assert_array_equal(found["embed"]["table"][: old.vocab], params["embed"]["table"])
    np.testing.assert_allclose(found["embed"]["table"][old.vocab :], [params["embed"]["table"].mean(0)] * 20, rtol=1e-5)
    assert "20 rows of no token" in lines[-1]


def test_adaptive_tables_are_refused_by_name(vocabularies):
    model = TransformerXL(vocab=0, width=16, depth=1, heads=2, context=8, memory=8, cutoffs=(100, 200))
    objective = Recurrent(model=model).resolve(vocabularies["small"])
    params = unbox(jax.eval_shape(objective.init, jax.random.key(0), vocabulary.example()))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params)
    with pytest.raises(UserError, match=r"table0.*adaptive"):
        operate(objective, params, vocabularies["small"], vocabularies["pairs"])


# -- what it is for ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_overlap_beats_random_rows(vocabularies, tmp_path):
    """A model of a minute, its tokenizer swapped: held-out text is likelier with composed rows than with new ones."""
    (tmp_path / "text.txt").write_text(TEXT)
    vocabularies["small"].save(tmp_path / "tokenizer.json")
    config = Config(
        objective=Causal(model=Transformer(context=96, width=32, depth=1, heads=2)),
        data=Data(source=Text(path=str(tmp_path / "text.txt")), tokenizer=Pretrained(str(tmp_path / "tokenizer.json"))),
        optimizer=Optimizer(lr=1e-2),
        steps=150,
        batch=8,
        every=Every(log=50, evaluate=1000, save=1000, sample=0),
        samples=(),
    )
    train(config, tmp_path / "run")
    config, params, old = opened(str(tmp_path / "run"), None)
    texts, nats = [line[:70] for line in TEXT.splitlines()[::20]], {}
    before = summed(config.objective, params, old, texts)
    for how in ("overlap", "mean", "random"):
        objective, found, new, _ = operate(config.objective, params, old, vocabularies["pairs"], how)
        nats[how] = summed(objective, found, new, texts)
    assert before > nats["overlap"] > nats["random"] + 20, (before, nats)
    assert nats["overlap"] > nats["mean"] + 20, (before, nats)


def summed(objective, params, tokenizer, texts):
    """Log-probability of the texts, each after the separator."""
    rows = [[tokenizer.separator, *tokenizer.encode(text).tolist()] for text in texts]
    width = min(96, objective.model.context)
    tokens = np.array([row + [0] * (width - len(row)) for row in rows])
    log_p = np.asarray(jax.nn.log_softmax(logits(objective.model, params, tokens)))
    return sum(float(log_p[k, t, row[t + 1]]) for k, row in enumerate(rows) for t in range(len(row) - 1))


# -- folders and runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(vocabularies, tmp_path_factory):
    """BERT, GPT-2 and T5 with random weights, each with a tokenizer."""
    root = tmp_path_factory.mktemp("folders")
    torch.manual_seed(0)
    size, made = {name: tokenizer.vocab for name, tokenizer in vocabularies.items()}, {}
    bert = transformers.BertConfig(
        vocab_size=size["words"], hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    made["bert"] = transformers.BertForMaskedLM(bert), "words"
    end = vocabularies["small"].separator
    gpt = transformers.GPT2Config(
        vocab_size=size["small"], n_embd=24, n_layer=1, n_head=2, n_positions=32, bos_token_id=end, eos_token_id=end
    )
    made["gpt2"] = transformers.GPT2LMHeadModel(gpt), "small"
    t5 = transformers.T5Config(
        vocab_size=size["unigram"] + 8, d_model=24, d_kv=12, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
    )  # fmt: skip
    made["t5"] = transformers.T5ForConditionalGeneration(t5), "unigram"
    for name, (model, tokenizer) in made.items():
        model.eval().save_pretrained(root / name)
        vocabularies[tokenizer].save(root / name / "tokenizer.json")
    return root


@pytest.mark.parametrize(("name", "to"), [("bert", "pairs"), ("gpt2", "words"), ("gpt2", "pairs"), ("bert", "unigram")])
def test_a_new_folder_loads_in_transformers(name, to, vocabularies, folders, tmp_path):
    """With its tokenizer, the same ids as here, the same logits, and ids of special tokens in their new places."""
    (tmp_path / "new").mkdir()
    vocabularies[to].save(tmp_path / "new" / "tokenizer.json")
    lines = convert(str(folders / name), None, str(tmp_path / "out"), tokenizer=str(tmp_path / "new"))
    assert any(line.startswith("kept: ") for line in lines)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    kind = {"bert": "AutoModelForMaskedLM", "gpt2": "AutoModelForCausalLM"}[name]
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "out").eval()
    loaded = load(tmp_path / "out")
    text = "the old keeper waited near the garden, again"
    ids = loaded.tokenizer.encode(text)
    assert tokenizer(text, add_special_tokens=False).input_ids == ids.tolist()
    assert theirs.config.vocab_size == loaded.objective.model.vocab >= loaded.tokenizer.vocab
    with torch.no_grad():
        expected = theirs(torch.tensor(ids[None].astype(np.int64))).logits
    model = loaded.objective.model
    h, _ = Model(model).apply({"params": loaded.params}, ids[None], causal=name == "gpt2")
    h = Model(model).apply({"params": loaded.params}, h, method="transform")
    found = Model(model).apply({"params": loaded.params}, method="head").logits(h)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if name == "bert":
        assert theirs.config.pad_token_id == loaded.tokenizer.special_id("[PAD]") == tokenizer.pad_token_id
        assert tokenizer.mask_token_id == loaded.tokenizer.special_id("[MASK]")
    else:
        assert theirs.config.eos_token_id == loaded.tokenizer.separator == tokenizer.eos_token_id


def test_an_encoder_decoder_keeps_its_ends(vocabularies, folders, tmp_path):
    """T5 with WordPiece: padding and ends go to [PAD] and [SEP], sentinels are added; rows follow."""
    (tmp_path / "new").mkdir()
    vocabularies["words"].save(tmp_path / "new" / "tokenizer.json")
    convert(str(folders / "t5"), None, str(tmp_path / "out"), tokenizer=str(tmp_path / "new"))
    config, old, new = json.loads((tmp_path / "out" / "config.json").read_text()), load(folders / "t5"), load(tmp_path / "out")
    assert config["pad_token_id"] == config["decoder_start_token_id"] == new.tokenizer.token_id("[PAD]")
    assert config["eos_token_id"] == new.tokenizer.token_id("[SEP]")
    a, b = flat(old.params)["embed/table"], flat(new.params)["embed/table"]
    assert len(b) == new.tokenizer.vocab
    np.testing.assert_array_equal(a[1], b[new.tokenizer.token_id("[SEP]")])
    transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_added_tokens(vocabularies, folders, tmp_path):
    (tmp_path / "tokens.txt").write_text("lighthouses\nunwantedly\n\nlighthouses\nĠthe\n", encoding="utf-8")
    done = start(
        "lm.convert", f"--model={folders / 'gpt2'}", f"--add_tokens={tmp_path / 'tokens.txt'}", f"--workdir={tmp_path / 'run'}"
    )
    assert done.returncode == 0, done.stderr
    old = load(folders / "gpt2")
    config, params, tokenizer = opened(str(tmp_path / "run"), None)
    added = tokenizer.encode("lighthouses").tolist()
    assert added == [tokenizer.vocab - 2]
    assert tokenizer.separator == old.tokenizer.separator
    assert tokenizer.decode(tokenizer.encode("two lighthouses stood")) == "two lighthouses stood"
    table, before = np.asarray(params["embed"]["table"]), np.asarray(old.params["embed"]["table"])
    np.testing.assert_array_equal(table[: len(before)], before)
    np.testing.assert_allclose(table[added[0]], before[old.tokenizer.encode("lighthouses")].mean(0), rtol=1e-5)
    assert "Ġthe" in done.stdout
    assert config.objective.model.vocab == tokenizer.vocab
    assert text_scores(Subject(config, params, tokenizer), "two lighthouses stood")["sum"] < 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--tokenizer=nowhere",), "nowhere does not exist"),
        (("--tokenizer=a", "--add_tokens=b"), "give one of them"),
        (("--add_tokens=nowhere",), "nowhere"),
        (("--pad_vocab=-3",), "must be positive"),
        (("--add_tokens={bad}",), "not UTF-8"),
        (("--add_tokens={empty}",), "names no token"),
    ],
)
def test_mistakes_are_named(args, said, folders, tmp_path):
    (tmp_path / "bad").write_bytes(b"ok\n\xff\xfe")
    (tmp_path / "empty").write_text("\n\n")
    named = {
        k.removeprefix("--"): v.format(bad=tmp_path / "bad", empty=tmp_path / "empty")
        for k, _, v in (arg.partition("=") for arg in args)
    }
    named = {"multiple" if k == "pad_vocab" else k: int(v) if k == "pad_vocab" else v for k, v in named.items()}
    with pytest.raises(UserError, match=said):
        convert(str(folders / "gpt2"), None, str(tmp_path / "out"), **named)
    assert not (tmp_path / "out").exists()


def test_bytes_take_no_tokens(vocabularies, tmp_path):
    (tmp_path / "tokens.txt").write_text("word\n")
    with pytest.raises(UserError, match="no longer pieces"):
        vocabulary.with_tokens(vocabularies["bytes"], tmp_path / "tokens.txt")


def test_nothing_is_overwritten(folders, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(UserError, match="exists"):
        convert(str(folders / "gpt2"), None, str(tmp_path / "out"), multiple=64)
