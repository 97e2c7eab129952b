"""Published vocabularies give the ids of `transformers` on ten thousand lines in several scripts, and theirs of ours.

The vocabularies are trained here on a part of the lines, in each form that model folders have.
"""

import ast
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from lm.data.tokenizer.tokenizer import BytePair, Tokenizer, WordPiece
from lm.errors import UserError

transformers = pytest.importorskip("transformers")

XQUAD = Path(__file__).parents[3] / "shared" / "data" / "xquad"
HARD = (
    "", " ", "  two  spaces ", "\ttab\nline\r\nend", "ﬁ ﬂ ½ ① Ａ", "e\u0301 n\u0303 a\u0328\u0301", "🏳️‍🌈 🇩🇪",
    "👩‍👩‍👧‍👦", "中文，标点。", "한국어 조선말", "日本語のテキスト", "العربية ١٢٣", "हिन्दी में", "ไทย ภาษา", "Ελληνικά ΣΑΣ",
    "İstanbul ıI", "Straße ẞ", "don't I'm we'll", "x\u00a0y\u2009z\u3000w", "a\u200bb\u200dc\ufeffd", "\u0000\u0001\u007f",
    "soft\u00adhyphen", "1,234.56 3rd", "$5 €6 £7 ^_^ ~`|", "\U00020000\U0002f800", "�", "ПриВет МИР", "ñandú Ñ", "\U000e0041",
    "aaaaaaaaaa" * 12, "[MASK] </s> <s> <unk> ##ing \u2581x",
)  # fmt: skip
SPANS = (  # code points that lines are made up of
    (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x1E00, 0x2100),
    (0x2190, 0x2800), (0x3000, 0x3200), (0x4E00, 0x5200), (0xAC00, 0xAE00), (0x1F300, 0x1F700), (0xFE00, 0xFE10),
)  # fmt: skip


def documentation():
    """Lines of the interpreter's own documentation."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield from (line for line in (ast.get_docstring(node, clean=False) or "").split("\n") if line.strip())


def questions(language: str):
    """Contexts, cut at sentences, and questions of XQuAD; nothing where it is not here."""
    path = XQUAD / f"xquad.{language}.json"
    articles = json.loads(path.read_text(encoding="utf-8"))["data"] if path.exists() else []
    for paragraph in (p for article in articles for p in article["paragraphs"]):
        yield from paragraph["context"].replace("。", "。\n").replace(". ", ".\n").split("\n")
        yield from (qa["question"] for qa in paragraph["qas"])


def made_up(count: int):
    """Lines of letters of many scripts, marks that combine, pictures and signs."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        words = []
        for _ in range(rng.integers(1, 9)):
            low, high = SPANS[rng.integers(len(SPANS))]
            word = "".join(map(chr, rng.integers(low, high, rng.integers(1, 7))))
            words.append(word + chr(rng.integers(0x300, 0x370)) * int(rng.integers(3) == 0))
        yield " ".join(words)


@pytest.fixture(scope="module")
def lines():
    english, chinese = list(questions("en")), list(questions("zh"))
    made = [*HARD, *made_up(700)]
    found = [*made, *english[:800], *chinese[:800]]
    rest = documentation()
    found += [line for line, _ in zip(rest, range(3500 - len(found)))]
    assert len(found) == 3500
    return found


@pytest.fixture(scope="module")
def corpus(lines):
    return lines[len(HARD) :: 2]


@pytest.fixture(scope="module")
def merged(corpus):
    """Vocabulary and merges of a trained byte-level BPE."""
    return json.loads(BytePair(vocab=2000).build(lambda: iter(corpus)).core.to_str())["model"]


def as_theirs(tokenizer, lines):
    """Their ids with special tokens."""
    return tokenizer(list(lines), add_special_tokens=True)["input_ids"]


def as_ours(tokenizer, lines, before=(), after=()):
    """Our ids, written tokens recognised, between the special tokens of a template."""
    before, after = ([tokenizer.special_id(name) for name in names] for names in (before, after))
    return [[*before, *tokenizer.encode(line, special=True).tolist(), *after] for line in lines]


def same(ours, theirs, lines):
    wrong = [(line, a, b) for line, a, b in zip(lines, ours, theirs, strict=True) if a != b]
    assert not wrong, f"{len(wrong)} lines differ, the first: {wrong[0]!r}"


def saved_is_read(tokenizer, folder, lines, before=(), after=()):
    """What we save gives the same ids there and here."""
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    same([tokenizer.encode(line, special=True).tolist() for line in lines],
         theirs(list(lines), add_special_tokens=False)["input_ids"], lines)  # fmt: skip
    again = Tokenizer.load(folder)
    same(as_ours(again, lines, before, after), as_ours(tokenizer, lines, before, after), lines)


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_piece(lowercase, lines, corpus, tmp_path):
    """vocab.txt, cased and not: [CLS] and [SEP] around."""
    trained = WordPiece(vocab=3000, lowercase=lowercase).build(lambda: iter(corpus))
    vocab = trained.core.get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab == len(theirs)
    same(as_ours(ours, lines, ["[CLS]"], ["[SEP]"]), as_theirs(theirs, lines), lines)
    saved_is_read(ours, tmp_path / "again", lines)


@pytest.mark.parametrize("model", ["gpt2", "roberta", "roberta, mask strips", "bart"])
def test_byte_pair(model, lines, merged, tmp_path):
    """vocab.json and merges.txt; special tokens come first and last in RoBERTa's."""
    vocab = merged["vocab"]
    if model != "gpt2":
        names = [name for name in vocab if name != "<|endoftext|>"]
        vocab = {name: i for i, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *names, "<mask>"])}
    if "strips" in model:  # published RoBERTa's <mask> takes the space before it along
        mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {vocab["<mask>"]: mask}}))
    model = model.partition(",")[0]
    ours, theirs = pairs_of(model, vocab, merged["merges"], tmp_path)
    assert ours.separator == vocab["<|endoftext|>" if model == "gpt2" else "</s>"]
    around = ((), ()) if model == "gpt2" else (["[CLS]"], ["[SEP]"])
    masked = [*lines[:200], *(f"{line} <mask>{line[:9]}" for line in lines[-200:])]
    for some in (lines, masked):
        same(as_ours(ours, some, *around), as_theirs(theirs, some), some)
    saved_is_read(ours, tmp_path / "again", lines)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("model", ["qwen2", "gpt2"])
def test_text_is_cut_as_the_class_says(model, prefix, lines, merged, tmp_path):
    """tokenizer_config.json names the class; config.json where it does not."""
    if model == "qwen2" and prefix:
        pytest.skip("Qwen's has no such choice")
    if prefix:
        (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true, "tokenizer_class": "GPT2Tokenizer"}')
    ours, theirs = pairs_of(model, merged["vocab"], merged["merges"], tmp_path)
    same(as_ours(ours, lines), as_theirs(theirs, lines), lines)
    saved_is_read(ours, tmp_path / "again", lines)


@pytest.mark.parametrize("kind", ["WhisperTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast"])
def test_other_ways_to_cut_are_refused(kind, tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_words_of_transformer_xl(tmp_path):
    """A pickle is not opened; the same words in a file of text are read."""
    (tmp_path / "config.json").write_text('{"model_type": "transfo-xl"}')
    (tmp_path / "vocab.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"vocab\.txt"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("<eos>\nthe\n,\n<unk>\ncat 17\n")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab == 5
    assert tokenizer.separator == 0
    assert tokenizer.encode("the cat , The\nthe cat").tolist() == [1, 4, 2, 3, 0, 1, 4]
    assert tokenizer.decode([1, 4, 2]) == "the cat ,"


def pairs_of(model, vocab, merges, folder):
    """Write both files; give both tokenizers."""
    (folder / "vocab.json").write_text(json.dumps(vocab))
    text = "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{text}", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.vocab == len(theirs) == len(vocab)
    return ours, theirs


def test_tokens_added_behind_the_vocabulary(tmp_path):
    """added_tokens.json, as BERT folders have it; ids with gaps cannot be given."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s", "the"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "added_tokens.json").write_text('{"[USER]": 9, "[TURN]": 8}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("[TURN] the cats[USER]", special=True).tolist() == [8, 7, 5, 6, 9]
    assert tokenizer.vocab == 10
    saved_is_read(tokenizer, tmp_path / "again", ["[TURN] the cats[USER]"])
    (tmp_path / "added_tokens.json").write_text('{"[USER]": 12}')
    with pytest.raises(UserError, match=r"\[USER\]"):
        Tokenizer.load(tmp_path)


def test_pairs_of_words_with_ends(lines, corpus, tmp_path):
    """GPT-1: lower case, words end in </w>."""
    from tokenizers import Tokenizer as Core
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    core = Core(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(vocab_size=5000, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False)
    core.train_from_iterator(corpus, trainer)
    trained = json.loads(core.to_str())["model"]
    ours, theirs = pairs_of("openai-gpt", trained["vocab"], trained["merges"], tmp_path)
    same(as_ours(ours, lines), as_theirs(theirs, lines), lines)
    assert ours.decode(ours.encode("the cats, and one")) == theirs.decode(theirs("the cats, and one")["input_ids"])
    saved_is_read(ours, tmp_path / "again", lines)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_tokenizer_json(kind, lines, corpus, tmp_path):
    """A file of the reference library itself, with a template and its own tokens."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<unk>", "<s>", "</s>", "<|im_start|>"]
    if kind == "bpe":
        core = Core(models.BPE())
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        core.normalizer = normalizers.NFC()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    else:
        core = Core(models.Unigram())
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        core.normalizer = normalizers.NFKC()
        trainer = trainers.UnigramTrainer(vocab_size=6000, special_tokens=special, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(corpus, trainer)
    pair = [(name, core.token_to_id(name)) for name in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=pair)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    theirs.save_pretrained(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.separator == theirs.eos_token_id
    same(as_ours(ours, lines, ["[CLS]"], ["[SEP]"]), as_theirs(theirs, lines), lines)
    saved_is_read(ours, tmp_path / "again", lines)


@pytest.mark.parametrize(
    ("kind", "model", "file", "after", "more"),
    [
        ("unigram", "t5", "spiece.model", ["</s>"], {}),
        ("bpe", "llama", "tokenizer.model", [], {"byte_fallback": True, "normalization_rule_name": "identity",
                                                 "remove_extra_whitespaces": False, "split_digits": True}),
    ],
)  # fmt: skip
def test_sentence_piece(kind, model, file, after, more, lines, corpus, tmp_path):
    """SentencePiece's own file as T5 and Llama 2 have it; ids of its own library, and of theirs."""
    sentencepiece = pytest.importorskip("sentencepiece")
    identity = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if model == "t5" else {}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(line for line in corpus if "\0" not in line), model_prefix=str(tmp_path / Path(file).stem),
        vocab_size=4000, model_type=kind, hard_vocab_limit=False, minloglevel=2, character_coverage=0.98, **more, **identity,
    )  # fmt: skip
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    if model == "llama":
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab == len(theirs)
    plain = [line for line in lines if "\0" not in line]
    if model == "llama":  # theirs has no prefix before a space, nor behind a special token; SentencePiece has, and we
        plain = [line for line in plain if not line.startswith(" ") and "</s>" not in line]
    before = [] if model == "t5" else ["[CLS]"]
    same(as_ours(ours, plain, before, after), as_theirs(theirs, plain), plain)
    saved_is_read(ours, tmp_path / "again", plain)
    written = ["a </s> b", "</s>", "x<unk> y"]
    apart = transformers.AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    same([ours.encode(line).tolist() for line in written], apart(written, add_special_tokens=False)["input_ids"], written)
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / file))
    odd = [line for line in plain if ours.encode(line).tolist() != own.encode(line)]
    # T5's normaliser takes one mark of several on a letter in its Rust form, theirs and ours, and equal scores are ties.
    assert len(odd) <= (0.05 * len(plain) if model == "t5" else 0), odd[:3]
