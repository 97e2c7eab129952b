"""Tokenizers: exact round trips on any text, published vectors, one file that carries everything."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, Pretrained, Tokenizer, WordPiece, byte_symbols
from lm.errors import UserError

ROOT = Path(__file__).parents[2]
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tiny_shakespeare.txt"
SAMPLE = ["the cat sat on the mat, and the cat's hat sat too. ", "1234 naïve 中文 \n\n def f(x): return x\n"] * 30
HARD = ["", "😀👩‍👩‍👧", "中文字", "\u0301 alone", "a<|endoftext|>b", "\x00\x7f\xa0\u2028", "  \n\t \r\n", "Ġ Ċ �"]


@pytest.fixture(scope="module")
def byte_pair():
    return BytePair(vocab=400).build(lambda: SAMPLE)


@pytest.fixture(scope="module")
def bytes_():
    return Bytes().build(lambda: [])


def test_byte_symbols_are_those_of_gpt2():
    assert [ord(byte_symbols()[byte]) for byte in (32, 10, 0, 127, 173, 160)] == [288, 266, 256, 289, 323, 322]
    from tokenizers import pre_tokenizers

    assert sorted(byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_text(byte_pair, bytes_, text):
    for tokenizer in (byte_pair, bytes_):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.separator not in ids


@pytest.mark.parametrize("text", HARD)
def test_round_trip_of_hard_text_after_a_reload(byte_pair, bytes_, text, tmp_path):
    for tokenizer in (byte_pair, bytes_):
        tokenizer.save(tmp_path / "tokenizer.json")
        again = Tokenizer.load(tmp_path / "tokenizer.json")
        assert again.decode(tokenizer.encode(text)) == text
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
        assert (again.vocab, again.separator, again.bytes) == (tokenizer.vocab, tokenizer.separator, tokenizer.bytes)


def test_fast_paths_equal_the_saved_tokenizer(bytes_):
    """Anything else that reads tokenizer.json (the tokenizers library) gets the same ids."""
    characters = Characters().build(lambda: HARD)
    for tokenizer in (bytes_, characters):
        for text in HARD:
            assert tokenizer.core.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).tolist()
            assert tokenizer.core.decode(tokenizer.encode(text).tolist()) == text


def test_bytes_are_their_values(bytes_):
    assert (bytes_.vocab, bytes_.separator) == (257, 256)
    assert bytes_.encode("aé").tolist() == [97, 195, 169]
    assert bytes_.decode([97, 256, 0xFF, 98]) == "a�b"
    assert bytes_.decode([97, 256], special=True) == "a<|endoftext|>"


@given(st.text(alphabet="ab 中\n😀"))
def test_characters(text):
    tokenizer = Characters().build(lambda: ["中\n😀", "ab "])
    assert (tokenizer.vocab, tokenizer.separator) == (6, None)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_characters(tmp_path):
    with pytest.raises(UserError, match=r"'é' \(U\+00E9, at 1\)"):
        Characters().build(lambda: ["abc"]).encode("aé")
    tokenizer = Characters(unknown=True).build(lambda: ["abc"])
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").encode("aéc").tolist() == [0, 3, 2]


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="tiny_shakespeare.txt is not here")
def test_tiny_shakespeare_has_65_characters_and_is_quick():
    text = SHAKESPEARE.read_text()
    tokenizer = Characters().build(lambda: [text])
    assert tokenizer.vocab == 65
    assert tokenizer.encode("\n !").tolist() == [0, 1, 2]
    best = min(_timed(tokenizer.encode, text) for _ in range(5))
    assert best < 0.05, f"{best:.3f} s for 1.1 MB"


def _timed(function, *arguments) -> float:
    import time

    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def test_byte_pair_learns_and_is_the_same_in_another_process(byte_pair):
    assert 257 < byte_pair.vocab <= 400
    assert byte_pair.token_id("the") is not None
    assert byte_pair.token_id("no such token") is None
    code = (
        "from lm.data.tokenizer.tokenizer import BytePair\nfrom tests.data.test_tokenizers import SAMPLE\n"
        "print(BytePair(vocab=400).build(lambda: SAMPLE).sha256())"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == byte_pair.sha256(), out.stderr


def test_byte_pair_looks_at_no_more_than_it_was_told():
    def endless():
        while True:
            yield "some text "

    assert BytePair(vocab=260, train_bytes=1000).build(endless).vocab == 260
    with pytest.raises(UserError, match="at least 257"):
        BytePair(vocab=100)


def test_special_tokens_are_recognised_only_on_request(byte_pair):
    text = "cat<|endoftext|>cat"
    assert byte_pair.separator not in byte_pair.encode(text)
    assert byte_pair.encode(text, special=True).tolist().count(byte_pair.separator) == 1


def test_pieces_show_what_tokens_stand_for(byte_pair, bytes_):
    assert "".join(byte_pair.pieces(byte_pair.encode("the cat sat\n"))) == "the cat sat\n"
    assert bytes_.pieces(bytes_.encode("aé")) == ["a", "\\xc3", "\\xa9"]
    assert byte_pair.pieces([byte_pair.separator]) == ["<|endoftext|>"]


def test_batch_equals_one_by_one(byte_pair, bytes_):
    for tokenizer in (byte_pair, bytes_):
        for ids, text in zip(tokenizer.encode_batch(HARD), HARD, strict=True):
            np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_half_a_surrogate_pair_is_named(byte_pair, bytes_):
    for tokenizer in (byte_pair, bytes_, Characters().build(lambda: ["a"])):
        with pytest.raises(UserError, match="surrogate pair at character 1"):
            tokenizer.encode("a\ud83d")


def test_published_forms(tmp_path, byte_pair):
    saved = json.loads(byte_pair.core.to_str())["model"]
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    (gpt2 / "vocab.json").write_text(json.dumps(saved["vocab"]))
    (gpt2 / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in saved["merges"]))
    again = Pretrained(str(gpt2)).build(lambda: [])
    for text in (*HARD, *SAMPLE[:2]):
        np.testing.assert_array_equal(again.encode(text), byte_pair.encode(text))
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s", "the"]))
    tokenizer = Pretrained(str(bert)).build(lambda: [])
    assert tokenizer.encode("The cats").tolist() == [7, 5, 6]
    assert tokenizer.encode("the [MASK]", special=True).tolist() == [7, 4]
    assert (tokenizer.separator, tokenizer.vocab) == (3, 8)


@pytest.mark.parametrize(
    ("kind", "settings_"),
    [
        ("unigram", {}),
        ("unigram", {"byte_fallback": True, "normalization_rule_name": "identity"}),
        ("bpe", {}),
        ("bpe", {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}),
    ],
)
def test_sentencepiece_models_give_the_ids_of_their_own_library(tmp_path, kind, settings_):
    sentencepiece = pytest.importorskip("sentencepiece")
    words = sorted({word for text in map(str, SAMPLE) for word in text.split()})
    lines = [" ".join(words[i % 7 :: 1 + i % 5]) for i in range(60)]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "spiece"), vocab_size=320 if settings_ else 60,
        model_type=kind, hard_vocab_limit=False, minloglevel=2, **settings_,
    )  # fmt: skip
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = Pretrained(str(tmp_path)).build(lambda: [])
    assert tokenizer.vocab == own.vocab_size()
    assert tokenizer.token_id("</s>") == tokenizer.separator == own.eos_id()
    for text in [*lines[:20], "the cats sat", "  the  hat ", "naïve 中文 ﬁ", "xyz 😀 the", "the"]:
        ids = own.encode(text)
        assert tokenizer.encode(text).tolist() == ids, text
        if own.unk_id() not in ids:
            assert tokenizer.decode(ids) == own.decode(ids)


def test_an_unusual_separator_survives_saving(tmp_path, byte_pair):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "the"}))
    byte_pair.core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Pretrained(str(tmp_path)).build(lambda: [])
    assert tokenizer.separator == byte_pair.token_id("the")
    run = tmp_path / "run"
    run.mkdir()
    tokenizer.save(run / "tokenizer.json")
    assert Tokenizer.load(run / "tokenizer.json").separator == tokenizer.separator


def test_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no valid JSON"):
        Tokenizer.load(tmp_path)


def test_special_tokens_written_in_a_text_where_they_are_meant():
    """By default they are text; the characters of a text without a place in the alphabet stay an error."""
    alphabet = Characters().build(lambda: ["ab<>|"])
    for plain, text in ((Bytes().build(lambda: ()), "a[MASK]<|endoftext|>b"), (alphabet, "a[MASK]b")):
        tokenizer = plain.with_special(["[MASK]"])
        found = tokenizer.reading_special()
        wanted = [[tokenizer.special_id("[MASK]")], [tokenizer.separator] * (tokenizer.separator is not None)]
        wanted = [*tokenizer.encode("a"), *wanted[0], *wanted[1], *tokenizer.encode("b")]
        assert found.encode(text).tolist() == found.encode_batch([text])[0].tolist() == wanted
        if tokenizer.bytes:
            assert len(tokenizer.encode(text)) == len(text)
        else:
            with pytest.raises(UserError, match=r"character 'x'"):
                found.encode("a[MASK]x")


@pytest.mark.parametrize("vocab", [10**12, -5])
@pytest.mark.parametrize("kind", [BytePair, WordPiece])
def test_a_vocabulary_beyond_reason_is_refused_before_room_is_set_aside(kind, vocab):
    with pytest.raises(UserError, match=r"at (least|most)|need"):
        kind(vocab=vocab)
