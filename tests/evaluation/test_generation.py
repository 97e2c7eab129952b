"""BLEU, chrF and ROUGE are the published scorers' to the last digit; the rest is theirs on other tokens."""

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from lm.errors import UserError
from lm.evaluation.metrics import statistics as st
from lm.evaluation.metrics.generation import Characters, bleu, chrf, exact_match, rouge

TEXTS = [
    "the cat is on the mat .",
    "there is a dog in the garden, is it not?",
    "Nothing is as it was.",
    "he said: I won't",
    "",
    "a cat sat",
]
REFERENCES = [
    ["the cat sat on the mat .", "a cat is on the mat ."],
    ["There is a dog in the garden, isn't there?"],
    ["Nothing is what it was.", "All has changed.", "Nothing is as it was."],
    ["he said : I will not"],
    ["something"],
    ["a cat sat down", "a cat sat up there"],
]


def streams(references):
    return [[r[k] if k < len(r) else None for r in references] for k in range(max(map(len, references)))]


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "char", "none"])
def test_bleu(tokenizer):
    metric = sacrebleu.BLEU(tokenize=tokenizer)
    expected = metric.corpus_score(TEXTS, streams(REFERENCES)).score
    found, signature = bleu(TEXTS, REFERENCES, tokenizer)
    assert found["bleu"].value == pytest.approx(expected, abs=1e-10)
    assert signature == str(metric.get_signature())
    sentences = [sacrebleu.sentence_bleu(t, r, tokenize=tokenizer).score for t, r in zip(TEXTS, REFERENCES)]
    assert found["bleu_sentence"].value == pytest.approx(np.mean(sentences))


def test_bleu_signature():
    _, signature = bleu(TEXTS, [r[:1] for r in REFERENCES])
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


@pytest.mark.parametrize("words", [0, 2])
def test_chrf(words):
    metric = sacrebleu.CHRF(word_order=words)
    found, signature = chrf(TEXTS, REFERENCES, words)
    assert found["chrf++" if words else "chrf"].value == pytest.approx(metric.corpus_score(TEXTS, streams(REFERENCES)).score)
    assert signature == str(metric.get_signature())


def test_error_is_that_of_resampled_sentences():
    texts, references = TEXTS * 5, REFERENCES * 5
    found, _ = bleu(texts, references)

    def direct(i):
        some = [references[k] for k in i]
        return {"bleu": sacrebleu.corpus_bleu([texts[k] for k in i], streams(some)).score}

    expected = st.bootstrap(direct, len(texts), seed=3, replicates=150)["bleu"]
    assert found["bleu"].error == pytest.approx(expected.error, rel=0.25)


def test_chinese_bleu():
    texts, references = ["我们明天去北京。"], [["我们明天去上海。"]]
    expected = sacrebleu.corpus_bleu(texts, streams(references), tokenize="zh").score
    assert bleu(texts, references, "zh")[0]["bleu"].value == pytest.approx(expected)
    assert expected > 10 > sacrebleu.corpus_bleu(texts, streams(references)).score


def test_published_rouge():
    found = rouge(["the cat was found under the bed"], [["the cat was under the bed"]])
    expected = {
        "rouge1": 0.923077,
        "rouge1/precision": 0.857143,
        "rouge1/recall": 1,
        "rouge2": 0.727273,
        "rougeL": 0.923077,
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-6)
    assert (found["rouge2/precision"].value, found["rouge2/recall"].value) == pytest.approx((2 / 3, 0.8))
    found = rouge(["the gunman\npolice ended"], [["police killed the gunman\nthe end"]])
    assert [found[k].value for k in ("rouge1", "rouge2", "rougeL", "rougeLsum")] == pytest.approx([0.6, 0.25, 0.4, 0.6])


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge(stemmer):
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), use_stemmer=stemmer)
    found = rouge(TEXTS, REFERENCES, kinds, stemmer)
    for kind in kinds:
        each = [max(scorer.score(r, t)[kind].fmeasure for r in some) for t, some in zip(TEXTS, REFERENCES)]
        assert found[kind].value == pytest.approx(np.mean(each))
        assert found[kind].error == pytest.approx(np.std(each, ddof=1) / np.sqrt(len(each)))


def test_chinese_rouge():
    """Three characters of four and five, two pairs of three and four, by hand."""
    texts, references = ["北京大人"], [["我去北京大"]]
    found = rouge(texts, references, tokenizer=Characters())
    assert found["rouge1/precision"].value == 0.75
    assert found["rouge1/recall"].value == pytest.approx(0.6)
    assert found["rouge2/recall"].value == 0.5
    assert found["rougeL"].value == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    with pytest.raises(UserError, match="use tokenizer=Characters"):
        rouge(texts, references)


def test_characters_keep_every_script():
    assert Characters().tokenize("Üben, ПРИВЕТ 北京2024年 it's") == [
        "üben",
        "привет",
        "北",
        "京",
        "2024",
        "年",
        "it",
        "s",
    ]
    same = rouge(["the cat 12"], [["the dog 12"]])["rouge1"].value
    assert rouge(["the cat 12"], [["the dog 12"]], tokenizer=Characters())["rouge1"].value == same


def test_exact_match():
    found = exact_match([" yes", "No", "x"], [["no", "yes"], ["no"], ["y"]])
    assert found["exact_match"].value == pytest.approx(1 / 3)
    assert exact_match([" yes", "No"], [["yes"], ["no"]], lambda t: t.strip().lower())["exact_match"].value == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bleu(["a"], ["a"]), "text 0: its references must be a list"),
        (lambda: rouge(["a"], [[]]), "text 0"),
        (lambda: bleu(["a"], [["a"]], "12a"), "did you mean '13a'"),
        (lambda: rouge(["a"], [["a"]], ["rougeX"]), "unknown ROUGE 'rougeX'"),
        (lambda: chrf(["a", "b"], [["a"]]), "2 texts, 1 references"),
        (lambda: exact_match([], []), "nothing to measure"),
    ],
)
def test_mistakes_are_told(call, words):
    with pytest.raises(UserError, match=words):
        call()
