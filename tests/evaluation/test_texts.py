"""Vectors of texts against torch, and what a reader says of texts that another model wrote."""

import json

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.embeddings import Association, Retrieval, Similarity
from lm.evaluation.perplexity import given
from lm.evaluation.subject import Subject
from lm.evaluation.texts import Texts
from lm.evaluation.vectors import vectors
from tests.evaluation.test_perplexity import TEXT, bert, gpt2, torch  # noqa: F401

TEXTS = ["the cat sat", "a bird", "dogs and cats sat on the mat and on mats", "on", "the dog sat on a mat"]


def test_a_masked_models_vectors_are_mean_states(torch, bert):  # noqa: F811
    model, subject = bert
    found = vectors(subject, TEXTS)
    for text, vector in zip(TEXTS, found):
        ids = torch.tensor([[2, *subject.tokenizer.encode(text), 3]])
        with torch.no_grad():
            wanted = model.bert(ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, wanted, atol=2e-5)


def test_a_writers_vectors_are_mean_states_whatever_the_batch(torch, gpt2):  # noqa: F811
    model, subject = gpt2
    found = vectors(subject, TEXTS)
    for text, vector in zip(TEXTS, found):
        ids = torch.tensor(subject.tokenizer.encode(text)[None].astype(np.int64))
        with torch.no_grad():
            wanted = model.transformer(ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, wanted, atol=5e-5)
    alone = Subject(subject.config, subject.params, subject.tokenizer, tokens=1)
    np.testing.assert_allclose(vectors(alone, TEXTS), found, atol=2e-5)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_texts_of_another_model(gpt2, tmp_path):  # noqa: F811
    _, subject = gpt2
    rows = [{"prompt": "the cat ", "text": t, "references": [t, "a bird"]} for t in TEXTS]
    found = Texts(path=lines(tmp_path / "t.jsonl", rows), human=lines(tmp_path / "h.jsonl", rows)).measure(subject)
    scored = subject.scorer([given(subject, "the cat ", text) for text in TEXTS])
    nats = -np.concatenate([one.logprobs for one in scored])
    assert found["fluency"].value == pytest.approx(np.exp(nats.mean()), rel=1e-4)
    assert found["bleu"].value == pytest.approx(100) and found["mauve"].value == pytest.approx(1)  # noqa: PT018
    assert -1 <= found["relevance"].value <= 1
    assert {"distinct_1", "self_bleu_4", "chrf", "rouge1"} <= {name.replace("-", "_") for name in found}


def test_similarity_follows_the_cosines(bert, tmp_path):  # noqa: F811
    _, subject = bert
    pairs = [(a, b) for a in TEXTS for b in TEXTS if a < b]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in (vectors(subject, p) for p in pairs)]
    rows = [{"first": a, "second": b, "score": c * 5} for (a, b), c in zip(pairs, cosines)]
    found = Similarity(path=lines(tmp_path / "s.jsonl", rows)).measure(subject)
    assert found["spearman"].value == pytest.approx(1) and found["uniformity"].value < 0  # noqa: PT018
    with pytest.raises(UserError, match=r"s.jsonl:1: 'score' is str, not int or float"):
        Similarity(path=lines(tmp_path / "s.jsonl", [{"first": "a", "second": "b", "score": "x"}])).measure(subject)


def test_retrieval_finds_equal_texts(bert, tmp_path):  # noqa: F811
    _, subject = bert
    rows = [{"query": text, "documents": [text]} for text in TEXTS[:4]]
    found = Retrieval(path=lines(tmp_path / "r.jsonl", rows)).measure(subject)
    assert found["accuracy@1"].value == found["mrr"].value == 1
    shifted = [{"query": a, "documents": [b, a]} for a, b in zip(TEXTS[:2], TEXTS[2:])]
    pool = lines(tmp_path / "p.jsonl", [{"text": text} for text in TEXTS])
    found = Retrieval(path=lines(tmp_path / "r.jsonl", shifted), pool=pool).measure(subject)
    assert found["accuracy@1"].value == 1
    with pytest.raises(UserError, match=r"r.jsonl:1: 'documents' must be a list of strings"):
        Retrieval(path=lines(tmp_path / "r.jsonl", [{"query": "a", "documents": []}])).measure(subject)


def test_association_of_sets(bert, tmp_path):  # noqa: F811
    _, subject = bert
    rows = [{"text": text, "set": name} for text, name in zip([*TEXTS[:4], *TEXTS[:4]], "xxyyaabb")]
    found = Association(path=lines(tmp_path / "w.jsonl", rows)).measure(subject)
    assert found["weat"].value > 0.5  # X and A are the same texts, and so are Y and B
    assert 0 < found["weat_p"].value < 0.5
    with pytest.raises(UserError, match=r"w.jsonl: no text of the set b"):
        Association(path=lines(tmp_path / "w.jsonl", rows[:6])).measure(subject)
    with pytest.raises(UserError, match=r"w.jsonl:1: 'set' must be x, y, a or b"):
        Association(path=lines(tmp_path / "w.jsonl", [{"text": "a", "set": "z"}])).measure(subject)
