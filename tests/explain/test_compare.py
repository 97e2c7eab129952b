"""Two networks on one text, and the table of embeddings: beside torch, and counted by hand."""

import numpy as np
import pytest

from lm.data.tokenizer.tokenizer import BytePair, WordPiece
from lm.errors import UserError
from lm.explain.compare import TokenScores, compare, first_match, token_scores
from lm.explain.embeddings import embedding_map, ids_of, neighbours, overlap, place_labels, principal_plane
from tests.explain import opened

torch = pytest.importorskip("torch")
TEXT = "the cat sat é on"


def test_scores_of_tokens_are_torchs(models):
    """Bytes of one character end together; the two masked and causal models meet at the ends of words."""
    theirs, objective, params, tokenizer = opened(models, "gpt2")
    first = token_scores(objective, params, tokenizer, TEXT)
    row = [tokenizer.separator, *tokenizer.encode(TEXT).tolist()]
    with torch.no_grad():
        log_p = theirs(torch.tensor([row])).logits[0].log_softmax(-1).numpy()
    expected = [log_p[t, i] for t, i in enumerate(row[1:])]
    np.testing.assert_allclose(first.logprobs, expected, atol=1e-4)
    assert first.ends[-1] == len(TEXT)

    second = token_scores(*opened(models, "bert")[1:], TEXT)
    found = compare(first, second)
    assert {TEXT[start:stop].strip() for start, stop in found.spans} <= {*"thecatsoné", "the", "cat", "sat", "on", "th", "ca"}
    assert found.shared.all()
    assert found.totals[0] == pytest.approx(sum(expected), abs=1e-3)
    assert found.totals[1] == pytest.approx(np.nansum(second.logprobs), abs=1e-3)
    np.testing.assert_allclose(found.difference, found.first - found.second)


def test_spans_of_different_tokenizers():
    """Sums over the characters where both end; a token without a score leaves its span out of the sums."""
    a = TokenScores("causal", ["ab", "c", "de"], np.array([2, 3, 5]), np.array([np.nan, -2.0, -4.0]))
    b = TokenScores("causal", ["a", "b", "cd", "e"], np.array([1, 2, 4, 5]), np.array([-1.0, -1.0, -1.0, -3.0]))
    found = compare(a, b)
    assert found.spans == [(0, 2), (2, 5)]
    np.testing.assert_array_equal(found.first, [np.nan, -6])
    np.testing.assert_array_equal(found.second, [-2, -4])
    assert found.totals == (-6, -4)
    assert [first_match([7, 1, 2, 8], [1, 2]), first_match([2, 3], [1, 2, 3]), first_match([5], [1, 2])] == [1, -1, None]


def test_bytes_of_a_character_share_its_end():
    for tokenizer in (BytePair(vocab=260).build(lambda: ["aa ab"]), WordPiece(vocab=100).build(lambda: ["the cat é"] * 9)):
        _, ends = tokenizer.encode_ends(["é cat"])[0]
        assert ends[-1] == 5
        assert (np.diff(ends) >= 0).all()


# -- embeddings --------------------------------------------------------------------------------------------------------


def test_neighbours_by_brute_force(models):
    _, _, params, tokenizer = opened(models, "bert")
    ids = ids_of(tokenizer, ["the", "cat"])
    assert tokenizer.pieces(ids) == ["the", "cat"]
    table = torch.tensor(np.asarray(params["embed"]["table"]))[: tokenizer.vocab]
    for one in neighbours(params, tokenizer, ids, 4):
        cosines = torch.nn.functional.cosine_similarity(table, table[one.id][None])
        cosines[one.id] = -2
        expected = cosines.topk(4)
        assert one.ids == expected.indices.tolist()
        np.testing.assert_allclose(one.cosines, expected.values, atol=1e-5)
    with pytest.raises(UserError, match="no single token"):
        ids_of(tokenizer, ["catsatmat"])


def test_map_and_labels(models):
    """scikit-learn's components but for their signs, which are fixed; labels that are shown cover each other little."""
    from sklearn.decomposition import PCA

    _, _, params, tokenizer = opened(models, "bert")
    table = np.asarray(params["embed"]["table"], np.float64)[:30]
    points, shares = principal_plane(table)
    reference = PCA(2).fit(table)
    np.testing.assert_allclose(np.abs(points), np.abs(reference.transform(table)), atol=1e-4)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, rtol=1e-4)
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()
    found, _ = embedding_map(params, tokenizer, neighbours(params, tokenizer, range(5, 17)))
    assert sum(p.chosen for p in found) == 12
    seen = [p for p in found if not p.hidden]
    boxes = np.array([(p.label_x, p.label_y - 10, p.label_x + 7.3 * len(p.token), p.label_y + 3) for p in seen])
    assert len(boxes) > 12
    assert (overlap(boxes, boxes).sum(1) - overlap(boxes, boxes).diagonal()).mean() < 0.25 * 13 * 20
    crowd = place_labels(np.zeros((30, 2)) + 300, ["token"] * 30, 5)
    assert sum(hidden for *_, hidden in crowd) >= 10
