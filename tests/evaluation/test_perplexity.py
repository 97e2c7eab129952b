"""Perplexity, last words and scores of texts against transformers' logits and the documented procedures."""

import json
import math

import numpy as np
import pytest

from lm.config import Config
from lm.convert.convert import load
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError
from lm.evaluation.in_context import Answers, Choices, Shots
from lm.evaluation.perplexity import LastWord, Perplexity, given, text_scores
from lm.evaluation.probes import Noise, Pairs
from lm.evaluation.registry import named
from lm.evaluation.subject import Subject

TEXT = "the cat sat on the mat and the dog sat on the cat while a bird sang of mats, cats and dogs\n" * 3


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def gpt2(torch, tmp_path_factory):
    """A small random GPT-2 with a tokenizer trained on the text: its reference, and ours under test."""
    transformers = pytest.importorskip("transformers")
    from lm.data.tokenizer.tokenizer import BytePair

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = BytePair(vocab=290).build(lambda: [TEXT])
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(**shape, initializer_range=0.3)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    loaded = load(folder)
    objective = loaded.objective.resolve(tokenizer)
    return model, Subject(Config(objective=objective), loaded.params, tokenizer)


@pytest.fixture(scope="module")
def bert(torch, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = sorted(set(TEXT.replace(",", " , ").split()))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=5 + len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=24, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained(folder)
    loaded, tokenizer = load(folder), Tokenizer.load(folder)
    return model, Subject(Config(objective=loaded.objective.resolve(tokenizer)), loaded.params, tokenizer)


def sliding(torch, model, ids, length, stride):
    """The method of transformers' documentation: only what a window adds is scored, the first token never."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        window = torch.tensor(np.array(ids[begin:end])[None].astype(np.int64))
        labels = window.clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(window, labels=labels).loss
        scored = int((labels[:, 1:] != -100).sum())
        total, count, before = total + float(loss) * scored, count + scored, end
        if end == len(ids):
            break
    return total, count


@pytest.mark.parametrize("stride", [4, 13, 19])
def test_sliding_windows_are_those_of_the_documentation(torch, gpt2, tmp_path, stride):
    model, subject = gpt2
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    found = Perplexity(path=str(path), window=19, stride=stride, lead=False).measure(subject)
    total, count = sliding(torch, model, subject.tokenizer.encode(TEXT), 20, stride)
    assert count > 60
    assert found["nats_per_token"].value == pytest.approx(total / count, abs=2e-5)
    assert found["perplexity"].value == pytest.approx(math.exp(total / count), rel=5e-5)
    tokens = len(subject.tokenizer.encode(TEXT)) - 1
    assert found["bits_per_byte"].value == pytest.approx(total / count * tokens / len(TEXT.encode()) / math.log(2), rel=1e-4)
    assert found["word_perplexity"].value == pytest.approx(math.exp(total / count * tokens / len(TEXT.split())), rel=1e-3)
    assert found["nats_per_token"].error > 0


def test_every_token_is_scored_once(gpt2):
    _, subject = gpt2
    ids = subject.tokenizer.encode(TEXT)
    for window, stride in ((0, 0), (7, 3), (8, 8), (32, 1), (5, 5)):
        task = Perplexity(path="", window=window, stride=stride)
        pairs = list(task.windows(subject, ids))
        np.testing.assert_array_equal(np.concatenate([pair.target for pair in pairs]), ids)
        assert max(len(pair.prompt.tokens) + len(pair.target) - 1 for pair in pairs) <= (window or 32)
        wanted = (window or 32) - (stride or 16) if len(pairs) > 1 else 1
        assert min(len(pair.prompt.tokens) for pair in pairs[1:-1] or pairs) >= min(wanted, 1)


def test_perplexity_does_not_depend_on_the_batch(gpt2, tmp_path):
    _, subject = gpt2
    (tmp_path / "text.txt").write_text(TEXT)
    values = []
    for tokens in (1, 50, 8192):
        fresh = Subject(subject.config, subject.params, subject.tokenizer, tokens=tokens)
        values.append(Perplexity(path=str(tmp_path / "text.txt")).measure(fresh)["nats_per_token"].value)
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)


def test_pseudo_likelihood_hides_one_token_at_a_time(torch, bert, tmp_path):
    model, subject = bert
    text = "the cat sat on a mat"
    found = text_scores(subject, text)
    ids = [2, *subject.tokenizer.encode(text), 3]
    wanted = []
    for at in range(1, len(ids) - 1):
        row = torch.tensor([ids])
        row[0, at] = 4
        with torch.no_grad():
            wanted.append(float(torch.log_softmax(model(row).logits[0, at], -1)[ids[at]]))
    np.testing.assert_allclose(found["logprobs"], wanted, atol=2e-5)
    assert found["tokens"] == text.split()
    assert found["sum"] == pytest.approx(sum(wanted), abs=1e-4)
    (tmp_path / "text.txt").write_text(text)
    measured = Perplexity(path=str(tmp_path / "text.txt")).measure(subject)
    assert measured["pseudo_perplexity"].value == pytest.approx(math.exp(-np.mean(wanted)), rel=1e-4)


def test_last_word_takes_every_token_of_it(torch, gpt2, tmp_path):
    model, subject = gpt2
    texts = ["the cat sat on the mats", "a bird sang of dogs", "dog cat"]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = LastWord(path=str(tmp_path / "passages.jsonl")).measure(subject)
    sums, right = [], []
    for text in texts:
        before, _, word = text.rpartition(" ")
        context = [subject.tokenizer.separator, *subject.tokenizer.encode(before)]
        target = list(subject.tokenizer.encode(" " + word))
        with torch.no_grad():
            logits = model(torch.tensor([context + target])).logits[0, len(context) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1)
        sums.append(float(logprobs[range(len(target)), target].sum()))
        right.append(logprobs.argmax(-1).tolist() == target)
    assert found["perplexity"].value == pytest.approx(math.exp(-np.mean(sums)), rel=1e-4)
    assert found["accuracy"].value == np.mean(right)


def test_the_border_between_context_and_continuation(gpt2):
    """Spaces move over it, a long context loses its beginning, and nothing is lost between the two."""
    _, subject = gpt2
    tokenizer = subject.tokenizer
    for context, continuation in (("the cat ", "sat"), ("the c", "at sat"), ("", " the"), ("a bird " * 30, "sang")):
        pair = given(subject, context, continuation)
        assert len(pair.prompt.tokens) + len(pair.target) - 1 <= 32
        text = tokenizer.decode(np.concatenate([pair.prompt.tokens, pair.target]))
        assert (context + continuation).endswith(text)
    assert tokenizer.decode(given(subject, "the cat ", "sat").target) == " sat"


def test_options_by_sum_and_by_length(torch, gpt2, tmp_path):
    model, subject = gpt2
    questions = [
        {"question": "the cat sat on", "choices": ["the mat", "dogs and cats and a bird", "mats"], "answer": 1},
        {"question": "a bird", "choices": ["sang of mats", "dog"], "answer": 1},
        {"question": "the dog sat on the", "choices": ["cat while a bird", "mat"], "answer": 0},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    found = Choices(path=str(path)).measure(subject)

    def logprob(context, option):
        ids = [subject.tokenizer.separator, *subject.tokenizer.encode(context)]
        target = list(subject.tokenizer.encode(" " + option))
        with torch.no_grad():
            logits = model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1]
        return float(torch.log_softmax(logits, -1)[range(len(target)), target].sum())

    def accuracy(score):
        return np.mean([np.argmax([score(q["question"], o) for o in q["choices"]]) == q["answer"] for q in questions])

    assert found["accuracy"].value == accuracy(logprob)
    assert found["accuracy_norm"].value == accuracy(lambda q, o: logprob(q, o) / len(o))
    assert found["accuracy_mutual"].value == accuracy(lambda q, o: logprob(q, o) - logprob("Answer:", o))


def test_shots_are_drawn_by_the_seed_and_never_the_question(tmp_path):
    from lm.evaluation.files import read_examples

    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) + "\n" for i in range(9)))
    asked, shots = read_examples(str(path)), Shots(count=3, description="Answer.")
    first = shots.contexts(asked, lambda one: one.get("answer"), 0)
    assert first == shots.contexts(asked, lambda one: one.get("answer"), 0)
    assert first != shots.contexts(asked, lambda one: one.get("answer"), 1)
    for i, context in enumerate(first):
        parts = context.split("\n\n")
        assert parts[0] == "Answer."
        assert parts[-1] == f"q{i}"
        assert len(parts) == 5
        assert all(part == f"q{part[1]} a{part[1]}" for part in parts[1:-1])
        assert f"q{i} " not in context
    with pytest.raises(UserError, match="more than the 8"):
        Shots(count=9).contexts(asked, lambda one: "", 0)
    with pytest.raises(UserError, match=r"q.jsonl:1: no 'query'"):
        Shots(template="{query}").contexts(asked, lambda one: "", 0)


def test_answers_are_written_and_compared(gpt2, tmp_path):
    _, subject = gpt2
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "the cat", "answers": ["nothing of this kind"]}) + "\n")
    found = Answers(path=str(path), new=4).measure(subject)
    assert found["exact"].value == 0
    assert 0 <= found["f1"].value < 1
    assert {"bleu", "chrf"} <= set(Answers(path=str(path), new=4, measure_by="text").measure(subject))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_pairs_count_the_likelier_first(kind, request, tmp_path):
    _, subject = request.getfixturevalue(kind)
    texts = [("the cat sat", "the dog sat"), ("a bird sang", "a mat sang"), ("dogs and cats", "cats and dogs")]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"first": a, "second": b}) + "\n" for a, b in texts))
    sums = [[text_scores(subject, text)["sum"] for text in pair] for pair in texts]
    found = Pairs(path=str(path)).measure(subject)
    assert found["preferred"].value == np.mean([a > b for a, b in sums])
    assert found["difference"].value == pytest.approx(np.mean([a - b for a, b in sums]), abs=1e-4)


def test_noise_is_compared_with_the_same_texts(gpt2, tmp_path):
    _, subject = gpt2
    path = tmp_path / "n.jsonl"
    texts = ["the cat sat on the mat", "a bird sang of mats", "the dog sat"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = Noise(path=str(path), rate=0.3).measure(subject)
    assert found["delta"].value == pytest.approx(found["disturbed"].value - found["clean"].value)
    assert found["clean"].value == pytest.approx(
        -sum(text_scores(subject, text)["sum"] for text in texts) / len("".join(texts)), rel=1e-4
    )
    assert Noise(path=str(path), rate=0.3).measure(subject)["disturbed"] == found["disturbed"]


def test_tasks_by_name():
    found = named("choices:a.jsonl?shots.count=2&shots.join=:,perplexity:b.txt?stride=8")
    assert found["choices:a.jsonl?shots.count=2&shots.join=:"] == Choices(path="a.jsonl", shots=Shots(count=2, join=":"))
    assert found["perplexity:b.txt?stride=8"] == Perplexity(path="b.txt", stride=8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("perplexty:a", "did you mean 'perplexity'"),
        ("perplexity", "write perplexity:FILE"),
        ("validation:a", "takes no file"),
        ("perplexity:a?strid=1", "did you mean 'stride'"),
        ("perplexity:a?stride=x", "not a whole number"),
        ("answers:a?measure_by=b", "measure_by"),
    ],
)
def test_a_wrong_task_is_told(text, said):
    with pytest.raises(UserError, match=said):
        named(text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "q.jsonl:1: no valid JSON"),
        ("[]", "q.jsonl:1: an object is needed, not a list"),
        ('{"question": "q"}', "q.jsonl:1: no 'choices'"),
        ('{"question": "q", "choices": [], "answer": 0}', "q.jsonl:1: 'choices' must be a list"),
        ('{"question": "q", "choices": ["a"], "answer": 1}', "q.jsonl:1: 'answer' must be the index of one of 1"),
        ('{"question": "q", "choices": ["a", " "], "answer": 0}', "q.jsonl:1: an empty choice among"),
        ("", "holds no examples"),
    ],
)
def test_a_broken_file_is_told(gpt2, tmp_path, line, said):
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(UserError, match=said):
        Choices(path=str(tmp_path / "q.jsonl")).measure(gpt2[1])


# -- several times the training length -----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["alibi", "learned"])
def test_lengths_against_the_loss_of_each_window(tmp_path, positions):
    """Every length scores the same text; a table of positions ends at its context."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from lm.config import load as load_config
    from lm.data.corpus.prepare import prepare
    from lm.evaluation.lengths import Lengths
    from lm.objectives.base import resolve
    from lm.sharding import unbox
    from lm.studies.arms import changed

    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"{TEXT} {i}" for i in range(40)))
    config = changed(load_config(f"tests/configs/tiny.py:text={text}"), {"objective.model.positions": positions})
    config, corpus = resolve(config, prepare(config.data))
    model = dataclasses.replace(config.objective.model, context=128)
    example = {name: jnp.zeros((1, 32), jnp.int32) for name in ("tokens", "segments", "positions")}
    params = jax.tree.map(lambda x: 3 * x, unbox(config.objective.init(jax.random.key(0), example)))
    figures = Lengths(multiples=(1, 4), tokens=300).measure(Subject(config, params, corpus.tokenizer))
    assert list(figures) == (["x1/loss", "x4/loss"] if positions == "alibi" else ["x1/loss"])
    stream = np.array(corpus.validation.tokens[:256], np.int32)
    for size in (32, 128)[: len(figures)]:
        rows = stream.reshape(-1, size)
        network = dataclasses.replace(config.objective, model=model if positions == "alibi" else config.objective.model)
        batch = {
            "tokens": rows[:, :-1],
            "targets": rows[:, 1:],
            "weights": np.ones(rows[:, 1:].shape, np.float32),
            "segments": np.ones(rows[:, 1:].shape, np.int32),
            "positions": np.broadcast_to(np.arange(size - 1, dtype=np.int32), rows[:, 1:].shape),
        }
        sums, _ = network.loss(params, batch, None, None)
        total, weight = sums["loss"]
        assert figures[f"x{size // 32}/loss"].value == pytest.approx(float(total / weight), abs=1e-5)
