"""lm from Python, and modules of a user's own: equal to what the commands do."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lm
from lm.errors import UserError
from tests.processes import command

ROOT = Path(lm.__path__[0]).parent.absolute()
TEXT = "a cat sat on a mat. " * 200


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Run the README's lines as they stand there, but on a tiny config; give their names."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "text.txt").write_text(TEXT)
    block = re.search(r"## In Python\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    spec = f"{ROOT}/tests/configs/tiny.py:text={folder}/text.txt"
    assert block.count('"gpt_nano", steps=200') == 1
    names: dict = {}
    with contextlib.chdir(folder):
        exec(block.replace('"gpt_nano", steps=200', f'"{spec}", steps=4'), names)
    return {**names, "trained": folder / "runs" / "mine"}


@pytest.fixture(scope="module")
def trained(written):
    return written["trained"]


@pytest.fixture(scope="module")
def model(written):
    return lm.load(written["trained"])


def test_the_readmes_lines_train_and_open_a_run(written):
    config = written["config"]
    assert (config.steps, config.optimizer.lr) == (4, 1e-3)
    summary = lm.train(config, workdir=written["trained"])  # complete already
    assert summary == json.loads((written["trained"] / "summary.json").read_text())
    assert summary["steps"] == 4
    assert written["ids"] == [*b"a text"]


def test_texts_are_those_of_the_command(trained, model, tmp_path):
    options = {"top_p": 0.9, "num_samples": 2, "max_new_tokens": 6}
    found = model.generate("a cat", strategy="sample", seed=3, **options)
    flags = [f"--{name}={value}".replace("num_samples", "num_return_sequences") for name, value in options.items()]
    output = tmp_path / "out.jsonl"
    done = command("lm.generate", f"--workdir={trained}", "--prompt=a cat", "--seed=3", f"--output={output}", *flags)
    assert done.returncode == 0, done.stderr
    assert found == [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["prompt"] for one in model.generate(["x", "y"], "greedy", max_new_tokens=2)] == ["x", "y"]


def test_ids_scores_logits_and_states_agree(model):
    text = "a mat sat"
    ids, scored = model.encode(text), model.score(text)
    assert model.decode(ids) == text
    row = [model.config.objective.separator, *ids]
    logprobs = jax.nn.log_softmax(model.logits([row]))[0]
    np.testing.assert_allclose([logprobs[t, i] for t, i in enumerate(ids)], scored["logprobs"], atol=1e-5)
    states = model.hidden([row])
    assert states.shape == (model.config.objective.model.depth + 1, 1, len(row), model.config.objective.model.width)
    assert model.logits([row]).shape[-1] == model.tokenizer.vocab


def test_an_explanation_is_arrays_and_a_page(model):
    found = model.explain("a mat", attribute="all")
    assert len(found["predictions"]) == 6
    assert found["attention"]["attention"].ndim == 4
    assert found.html().lower().startswith("<!doctype html>")


def test_figures_are_those_of_the_run(trained, model):
    summary = json.loads((trained / "summary.json").read_text())
    assert model.evaluate()["validation"]["loss"] == pytest.approx(summary["eval/validation/loss"], rel=1e-5)


def test_mistakes_are_lines(model, tmp_path):
    for call, words in (
        (lambda: lm.load(tmp_path / "none"), "there is no such folder"),
        (lambda: lm.config("gpt_nano", stepz=3), "stepz"),
        (lambda: model.generate("a", "gredy"), "did you mean 'greedy'"),
        (lambda: model.generate("a", top_kk=3), "did you mean 'top_k'"),
        (lambda: model.logits([1, 2]), r"rows \(B, T\)"),
        (lambda: model.logits([[1, 999]]), "the vocabulary has ids 0 to 256"),
    ):
        with pytest.raises(UserError, match=words):
            call()


OWN = """
from dataclasses import dataclass
from lm.decode.strategies import STRATEGIES, GreedySearch
from lm.objectives.causal import Causal

@dataclass(frozen=True, kw_only=True)
class Mine(Causal):
    strength: float = 1.0

@dataclass(frozen=True)
class Mirror(GreedySearch):
    "Greedy by another name."

STRATEGIES["mirror"] = Mirror
"""
CONFIG = """
from own_objective import Mine
from lm.config import load
import dataclasses

def config(text: str):
    config = load(f"TINY:text={text}")
    objective = Mine(**{f.name: getattr(config.objective, f.name) for f in dataclasses.fields(config.objective) if f.init})
    return dataclasses.replace(config, objective=objective, steps=2)
"""


def test_an_objective_and_a_strategy_of_ones_own(tmp_path):
    """Trained from a file beside them; resumed, measured and written with `--modules`, and refused without."""
    (tmp_path / "own_objective.py").write_text(OWN)
    (tmp_path / "own_config.py").write_text(CONFIG.replace("TINY", f"{ROOT}/tests/configs/tiny.py"))
    (tmp_path / "text.txt").write_text(TEXT)

    def run(module, *flags):
        return command(module, *flags, folder=tmp_path)

    done = run("lm.main", "--config=own_config.py:text=text.txt", "--workdir=run")
    assert done.returncode == 0, done.stderr
    refused = run("lm.main", "--workdir=run", "--config.steps=3")
    assert refused.returncode == 2
    assert "'own_objective.Mine', which is not part of lm's configs; if the module is yours, give --modules=own_objective" in (
        refused.stderr
    )
    done = run("lm.main", "--workdir=run", "--config.steps=3", "--modules=own_objective")
    assert done.returncode == 0, done.stderr
    assert "going on from step 2" in done.stdout
    done = run("lm.generate", "--workdir=run", "--modules=own_objective", "--strategy=mirror", "--max_new_tokens=3")
    assert done.returncode == 0, done.stderr
    missing = run("lm.generate", "--workdir=run", "--modules=own_objektive")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "no module 'own_objektive'" in missing.stderr


def test_a_skeleton_trains_and_its_tests_pass(tmp_path):
    done = command("lm.objectives", "--new=my_idea", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "text.txt").write_text(TEXT)
    spec = "--config=my_idea_config.py:text=text.txt,steps=2,width=16,vocab=270"
    done = command("lm.main", spec, "--workdir=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_idea.py"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout
    for name, words in (("my_idea", "a module of this name exists"), ("My idea", "lower-case"), ("json", "exists already")):
        refused = command("lm.objectives", f"--new={name}", folder=tmp_path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert words in refused.stderr
