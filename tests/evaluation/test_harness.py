"""The adapter of lm-evaluation-harness: its requests against direct scores; its own run where it is installed."""

import json
import types

import numpy as np
import pytest

from lm.config import Config
from lm.data.tokenizer.tokenizer import Bytes
from lm.decode.speed import random_params
from lm.evaluation.harness import adapter, generated, likelihoods, rolling
from lm.evaluation.perplexity import text_scores
from lm.evaluation.subject import Subject
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal


@pytest.fixture(scope="module")
def subject():
    tokenizer = Bytes().build(lambda: [])
    objective = Causal(model=Transformer(context=32, width=32, depth=2, heads=4, init=0.3)).resolve(tokenizer)
    return Subject(Config(objective=objective), random_params(objective.model), tokenizer)


def test_continuations_and_whole_texts(subject):
    whole, first = text_scores(subject, "abcdef"), text_scores(subject, "abc")
    (value, greedy), (alone, _) = likelihoods(subject, [("abc", "def"), ("", "abcdef")])
    assert value == pytest.approx(whole["sum"] - first["sum"], abs=1e-4)
    assert not greedy
    assert alone == pytest.approx(whole["sum"], abs=1e-4)
    assert rolling(subject, ["abcdef", "abc"]) == pytest.approx([whole["sum"], first["sum"]], abs=1e-4)


def test_a_long_text_is_read_in_windows(subject):
    """Each token once; the last window looks back as far as it can."""
    text = "the cat sat on the mat and the dog sat on the cat while"
    ids = np.array([256, *text.encode()])
    from lm.decode.score import Pair
    from lm.evaluation.harness import Prompt, windows

    found = list(windows(ids, 32))
    assert np.concatenate([pair.target for pair in found]).tolist() == ids[1:].tolist()
    assert [len(pair.prompt.tokens) for pair in found] == [1, 32 + 1 - (len(ids) - 33)]
    direct = subject.scorer([Pair(Prompt(pair.prompt.tokens), pair.target) for pair in found])
    assert rolling(subject, [text])[0] == pytest.approx(sum(float(one.logprobs.sum()) for one in direct), abs=1e-4)


def test_texts_are_written_as_asked(subject):
    asked = [("ab", {"until": ["\n"], "max_gen_toks": 4}), ("abc", {"until": [], "max_gen_toks": 6})]
    short, long = generated(subject, asked)
    assert len(short.encode()) <= 12
    assert long == generated(subject, asked[1:])[0]


def test_the_harness_itself(subject, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = [{"question": "abc", "choices": ["d", "zz"], "answer": 0}, {"question": "cat", "choices": ["s", "q"], "answer": 1}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path}/q.jsonl\noutput_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        'target_delimiter: ""\nmetric_list:\n  - metric: acc\n'
    )
    manager = TaskManager(include_path=str(tmp_path))
    found = lm_eval.simple_evaluate(model=adapter(subject), tasks=["mine"], task_manager=manager, bootstrap_iters=10)
    best = []
    for row in rows:
        pairs = [(row["question"], option) for option in row["choices"]]
        best.append(int(np.argmax([value for value, _ in likelihoods(subject, pairs)]) == row["answer"]))
    assert found["results"]["mine"]["acc,none"] == np.mean(best)


def test_without_the_harness_one_line_says_so(subject, monkeypatch):
    from lm.errors import UserError

    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", types.SimpleNamespace())
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api", None)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        adapter(subject)
