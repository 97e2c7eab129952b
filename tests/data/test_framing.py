"""Texts framed as published tokenizers do, cut as they cut, and characters found again under every tokenizer."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.labelled.answers import Choice, Window, answer, candidates, token_span
from lm.data.rows.examples import best_fit, row_length
from lm.data.rows.packing import owners, token_windows, word_windows
from lm.data.rows.templates import Frame, Laid, longest_first
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, Tokenizer, WordPiece
from lm.errors import UserError
from tests.objectives.labelled import words

TEXT = "Zoë saw 北京 and the 🐶👩‍👩‍👧 café; cafe\u0301s\u200b, naïve — “quoted”\tend. "


def unigram():
    """SentencePiece's kind of vocabulary, as the tokenizers library trains it."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    core = Core(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    names = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=names, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([TEXT] * 10, trainer)
    return Tokenizer(core)


KINDS = {
    "bytes": lambda: Bytes().build(lambda: ()),
    "characters": lambda: Characters().build(lambda: [TEXT]),
    "byte-level BPE": lambda: BytePair(vocab=400).build(lambda: [TEXT] * 5),
    "WordPiece": lambda: WordPiece(vocab=200).build(lambda: [TEXT] * 5),
    "WordPiece, cased": lambda: WordPiece(vocab=200, lowercase=False).build(lambda: [TEXT] * 5),
    "SentencePiece": unigram,
}


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_found_again_by_their_characters(kind):
    """Every span of words, given by characters, is the text from the first of its tokens to the last."""
    frame = Frame(KINDS[kind](), "bert")
    ids, spans = frame.spans(TEXT)
    assert len(ids) == len(spans) > 5
    assert ids.tolist() == frame.encode(TEXT).tolist()
    starts = [i for i, c in enumerate(TEXT) if c != " " and (i == 0 or TEXT[i - 1] == " ")]
    ends = [TEXT.index(" ", i) for i in starts]
    for (i, start), (j, end) in itertools.combinations(enumerate([*zip(starts, ends)]), 2):
        low, high = start[0], end[1]
        first, last = token_span(spans, low, high)
        text = TEXT[spans[first, 0] : spans[last, 1]]
        assert text.strip("\t\u200b") == TEXT[low:high].strip("\t\u200b"), (kind, i, j)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spaced", [True, False])
def test_every_word_has_a_first_token(kind, spaced):
    frame = Frame(KINDS[kind](), "bert")
    parts = TEXT.split()
    found = frame.words(parts, spaced and kind != "characters", "here")
    assert len(found) == len(parts)
    assert all(len(ids) for ids in found)
    if kind in ("bytes", "byte-level BPE"):
        assert frame.tokenizer.decode(np.concatenate(found)) == (" " if spaced else "").join(parts)
    if kind == "SentencePiece" and not spaced:
        assert all(len(ids) == 1 or ids[0] != frame.tokenizer.token_id("\u2581") for ids in found)


def test_a_word_that_the_tokenizer_drops_is_unknown():
    frame = Frame(words(), "bert")
    assert [ids.tolist() for ids in frame.words(["one", "\u0000", "two"], True, "here")] == [[5], [1], [6]]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=2), st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_the_longer_text_is_cut_first(sizes, limit):
    """As the tokenizers library cuts, on words of one token."""
    core = words().core
    core.enable_truncation(limit, strategy="longest_first")
    texts = [" ".join(["one"] * size) for size in sizes]
    found = core.encode(*texts, add_special_tokens=False)
    theirs = [sum(kind == k for kind in found.type_ids) for k in range(len(sizes))]
    core.no_truncation()
    assert longest_first(sizes, limit) == theirs


FAMILIES = {
    "bert": ([2, 5, 6, 3, 7, 3], [0, 0, 0, 0, 1, 1]),
    "roberta": ([2, 5, 6, 3, 3, 7, 3], [0] * 7),
    "t5": ([5, 6, 3, 7, 3], [0] * 5),
}


@pytest.mark.parametrize("style", FAMILIES)
def test_frames(style):
    laid = Frame(words(), style).join([np.array([5, 6]), np.array([7])], 20)
    tokens, types = FAMILIES[style]
    assert (laid.tokens.tolist(), laid.types.tolist()) == (tokens, types)
    assert [laid.tokens[begin] for begin in laid.begins] == [5, 7]


def test_frames_are_those_of_published_tokenizers(tmp_path):
    """BERT's own, for one text and for two, cut and whole."""
    transformers = pytest.importorskip("transformers")
    bert = words()
    bert.core.save(str(tmp_path / "bert.json"))
    theirs = transformers.BertTokenizerFast(vocab=bert.core.get_vocab())
    texts = ["one two three four", "five six"]
    for limit, count in itertools.product((6, 20), (1, 2)):
        expected = theirs(*texts[:count], truncation="longest_first", max_length=limit)
        laid = Frame(bert, "bert").join([bert.encode(text) for text in texts[:count]], limit)
        assert laid.tokens.tolist() == expected["input_ids"]
        assert laid.types.tolist() == expected["token_type_ids"]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("start", [2, 5, 6, 3, 7, 3]), ("end", [2, 7, 8, 3, 7, 3]), ("both", [2, 5, 8, 3, 7, 3])],
)
def test_what_stays_of_a_text_that_is_cut(keep, expected):
    frame = Frame(words(), "bert")
    long, short = np.array([5, 6, 7, 8]), np.array([7])
    assert frame.join([long, short], 6, keep).tokens.tolist() == expected
    assert frame.join([long, short], 20, keep).tokens.tolist() == [2, 5, 6, 7, 8, 3, 7, 3]
    assert frame.join([long], 5, "both").tokens.tolist() == [2, 5, 7, 8, 3]  # of three, two are of the end


def test_a_limit_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match=r"rows\.length"):
        Frame(words(), "bert").join([np.array([5])], 2)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_rows_hold_everything_once(sizes, seed):
    table = np.array(sizes)
    rows = best_fit(table, np.random.default_rng(seed).permutation(len(table)), 32)
    assert sorted(k for row in rows for k in row) == list(range(len(sizes)))
    assert all(table[row].sum() <= 32 for row in rows)
    assert len(rows) <= 2 * -(-table.sum() // 32)


def test_rows_grow_where_they_would_be_badly_filled():
    assert row_length([16] * 100, 128) == 128
    assert row_length([70] * 100, 128) == 512
    assert row_length([128] * 10, 128) == 128


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_windows_cover_and_every_item_has_one_owner(count, size, step):
    step = min(step, size)
    found = token_windows(count, size, step)
    assert set().union(*(range(*one) for one in found)) == set(range(count))
    owner = owners(found, count)
    for item, k in enumerate(owner):
        low, high = found[k]
        assert low <= item < high
        context = min(item - low, high - 1 - item) + 0.01 * (high - low)
        for a, b in found:
            if a <= item < b:
                assert context >= min(item - a, b - 1 - item) + 0.01 * (b - a) - 1e-9


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(9, 30), st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_windows_of_words_fit(sizes, room, overlap):
    found = word_windows(sizes, room, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == len(sizes)
    for low, high in found:
        assert sum(sizes[low:high]) <= room
    for (_, before), (after, _) in itertools.pairwise(found):
        assert after <= before


def window(start, end, spans, owned=None, none=0):
    spans = np.array(spans, np.int32)
    owned = np.ones(len(spans), bool) if owned is None else np.array(owned)
    laid = Laid(np.zeros(1 + len(spans), np.int32), np.zeros(0, np.int32), (0, 1))
    return Window(laid, 1, spans, owned, none), np.array(start, float), np.array(end, float)


def test_the_best_span_and_when_it_is_none():
    context = "red green blue"
    one = window([1.0, 5, 0, 1], [1.0, 0, 4, 3], [(0, 3), (4, 9), (10, 14)])
    choice = Choice(candidates=20, longest=2)
    found = candidates(*one, choice)
    assert found[0] == 2.0
    assert found[1][0] == (9.0, 0, 9)
    assert (5 + 3, 0, 14) not in found[1]  # three tokens
    result = answer(context, [found], choice, null=True)
    assert (result["text"], result["odds"]) == ("red green", -7.0)
    assert [c["text"] for c in result["candidates"]][:2] == ["red green", "red"]
    sure = Choice(candidates=20, longest=2, threshold=-8.0)
    assert answer(context, [found], sure, null=True)["text"] == ""
    assert answer(context, [found], sure, null=False)["text"] == "red green"


def test_windows_are_weighed_against_each_other():
    """A start counts where its window has most context; the least score of no answer counts."""
    context = "red green blue"
    first = window([0.0, 9, 1], [0.0, 9, 1], [(0, 3), (4, 9)], owned=[False, True])
    second = window([-3.0, 2, 1], [0.0, 2, 1], [(0, 3), (4, 9)])
    choice = Choice(candidates=5, longest=5)
    result = answer(context, [candidates(*one, choice) for one in (first, second)], choice, null=True)
    assert result["text"] == "red"
    assert result["candidates"][0]["score"] == 4.0
    assert result["odds"] == -7.0
