"""Special tokens and what pieces stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, Pretrained, Tokenizer, WordPiece
from lm.errors import UserError

TEXT = "The cat's hat, sat: 12.5! naïve 中文字 [MASK] don't\n"
NEEDED = ("[CLS]", "[SEP]", "[MASK]", "[PAD]", "<extra_id_0>")


@pytest.fixture(scope="module")
def built():
    kinds = {
        "bytes": Bytes(),
        "characters": Characters(),
        "bpe": BytePair(vocab=400),
        "wordpiece": WordPiece(vocab=200),
    }
    # A piece that BPE learns may hold several ideographs: it learns from text without them.
    texts = {name: TEXT.replace("中文字", "") if name == "bpe" else TEXT for name in kinds}
    return {name: kind.build(lambda name=name: [texts[name]] * 30) for name, kind in kinds.items()}


def cut(tokenizer, text) -> list[str]:
    """The words that the piece table finds."""
    ids = tokenizer.encode(text)
    starts = tokenizer.piece_table().word_starts(ids)
    assert starts.dtype == bool
    groups = np.split(ids, np.flatnonzero(starts[1:]) + 1)
    return [w for group in groups if (w := tokenizer.decode(group).strip())]


@pytest.mark.parametrize("name", ["bytes", "characters", "bpe", "wordpiece"])
def test_words(built, name):
    words = cut(built[name], TEXT)
    if name == "bpe":  # its pieces join an apostrophe and what follows it
        words = " ".join(words).replace("'", " ' ").split()
    want = ["The", "cat", "'", "s", "hat", ",", "sat", ":", "12", ".", "5", "!", "naïve", "中", "文", "字", "[", "MASK"]
    want += ["]", "don", "'", "t"]
    if name == "wordpiece":
        want = [w.lower().replace("ï", "i") for w in want]
    assert words == want


@given(st.text(alphabet="ab 中é.\n😀9", max_size=30))
@settings(max_examples=150, deadline=None)
def test_bytes_and_characters_find_the_same_words(text):
    characters, bytes_ = (kind.build(lambda: ["ab 中é.\n😀9"]) for kind in (Characters(), Bytes()))
    if text:
        assert cut(characters, text) == cut(bytes_, text)


@pytest.mark.parametrize("name", ["bytes", "characters", "bpe", "wordpiece"])
def test_special_tokens_are_added_once_and_saved(built, name, tmp_path):
    before = built[name]
    tokenizer = before.with_special(NEEDED)
    assert tokenizer.with_special(NEEDED) is tokenizer
    assert tokenizer.with_special(("<mask>", "</s>", "<pad>")) is tokenizer
    assert tokenizer.separator == before.separator
    ids = [tokenizer.special_id(special) for special in NEEDED]
    assert len(set(ids)) == 5
    assert max(ids) == tokenizer.vocab - 1
    new = [i for i in ids if i >= before.vocab]
    assert len(new) == tokenizer.vocab - before.vocab == (1 if name == "wordpiece" else 5)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    for one in (tokenizer, again):
        np.testing.assert_array_equal(one.encode(TEXT), before.encode(TEXT))
        assert not set(one.encode(TEXT).tolist()) & set(ids)
        assert one.decode([ids[2], *before.encode(TEXT)]) == before.decode(before.encode(TEXT))
        assert one.decode([ids[2]], special=True) == "[MASK]" == one.pieces([ids[2]])[0]
        assert one.piece_table().special[ids].all()
        assert (one.vocab, one.separator, one.bytes, one.characters) == (
            tokenizer.vocab, before.separator, before.bytes, before.characters,
        )  # fmt: skip
    assert tokenizer.piece_table() is tokenizer.piece_table()
    assert len(tokenizer.piece_table().special) == tokenizer.vocab


def test_a_missing_special_token_is_named(built):
    with pytest.raises(UserError, match=r"no token \[MASK\]"):
        built["bpe"].special_id("[MASK]")


def test_aliases_of_published_vocabularies(tmp_path, built):
    import json

    saved = json.loads(built["bpe"].core.to_str())["model"]
    vocab = saved["vocab"] | {n: len(saved["vocab"]) + k for k, n in enumerate(("<s>", "</s>", "<mask>", "<pad>"))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(f"{a} {b}" for a, b in saved["merges"]))
    tokenizer = Pretrained(str(tmp_path)).build(lambda: [])
    assert tokenizer.with_special(("[CLS]", "[SEP]", "[MASK]", "[PAD]")) is tokenizer
    assert tokenizer.special_id("[MASK]") == vocab["<mask>"]
    assert tokenizer.piece_table().special[[vocab["<mask>"], vocab["<s>"]]].all()


def test_ends_of_sentences(built):
    for name, tokenizer in built.items():
        table = tokenizer.piece_table()
        assert table.ends_sentence[tokenizer.encode("!")].all()
        assert not table.ends_sentence[tokenizer.encode("at")].any()
        assert not (table.ends_sentence & table.special).any()
        if name != "wordpiece":
            assert table.ends_sentence[tokenizer.encode("\n")].all()


def test_spaces_and_row_borders(built):
    table = built["characters"].piece_table()
    ids = built["characters"].encode
    assert table.word_starts(ids("at  at")).tolist() == [True, False, True, False, True, False]
    assert table.word_starts(ids("")).tolist() == []
    special = built["wordpiece"].piece_table()
    row = np.array([2, *built["wordpiece"].encode("cat's"), 3])
    assert special.word_starts(row)[[0, 1, -1]].all()


def test_word_piece():
    text = ["The Cats sat. naïve 中文"] * 10
    tokenizer = WordPiece(vocab=120).build(lambda: text)
    assert [tokenizer.token_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.separator == 3
    assert tokenizer.decode(tokenizer.encode("The Cats sat")) == "the cats sat"
    assert [p.removeprefix("##") for p in tokenizer.pieces(tokenizer.encode("中文"))] == ["中", "文"]
    assert tokenizer.encode("ﷺ").tolist() == [1]
    cased = WordPiece(vocab=120, lowercase=False).build(lambda: text)
    assert cased.decode(cased.encode("The naïve")) == "The naïve"
    assert WordPiece(vocab=120).build(lambda: text).sha256() == tokenizer.sha256()
    with pytest.raises(UserError, match="at least 100"):
        WordPiece(vocab=10)


def test_sentencepiece_pieces():
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    pieces = ["<unk>", "</s>", "\u2581the", "cat", "s", "\u2581", ".", "中", "<0xE4>", "<0xB8>", "<0x0A>"]
    table = Tokenizer(Core(models.Unigram([(p, -1.0) for p in pieces], unk_id=0))).piece_table()
    row = np.array([2, 3, 4, 6, 4, 5, 3, 7, 7, 8, 9, 4, 1, 4])
    assert table.word_starts(row).astype(int).tolist() == [1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    assert np.flatnonzero(table.ends_sentence).tolist() == [6, 10]
    assert np.flatnonzero(table.special).tolist() == [0, 1]


def test_source_from_still_takes_paths():
    assert source_from(text="a.csv").path == "a.csv"
