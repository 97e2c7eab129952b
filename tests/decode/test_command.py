"""python -m lm.generate: what it prints and writes, and how it refuses."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from lm.checkpoint import Checkpoints
from lm.config import Config, to_json
from lm.data.tokenizers import Characters
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.sharding import unbox
from lm.state import create


def command(*arguments):
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "lm.generate", *map(str, arguments)], env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with a random model, checkpoints of steps 1 and 2, and the character tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = Characters().build(lambda: ["abcdefghijklmnopqrstuvwxyz\n "])
    tokenizer.save(folder / "tokenizer.json")
    model = Transformer(vocab=tokenizer.vocab, context=32, width=16, depth=1, heads=2, init=0.5, init_positions=0.5)
    config = Config(objective=Causal(model=model))
    (folder / "config.json").write_text(to_json(config), encoding="utf-8")
    checkpoints = Checkpoints(folder, config.keep)
    for step in (1, 2):
        params = unbox(Model(model).init(jax.random.key(step), np.zeros((1, 8), np.int32))["params"])
        checkpoints.save(step, create(config, optax.sgd(1.0), params), {}, loss=float(step))
    checkpoints.close()
    return folder


def test_prints_and_writes_samples(workdir, tmp_path):
    output = tmp_path / "samples.jsonl"
    arguments = ["--prompt=abc", "--prompt=", "--num_samples=2", "--max_new_tokens=5", "--seed=1"]
    result = command(f"--workdir={workdir}", *arguments, f"--output={output}")
    assert (result.returncode, result.stderr) == (0, "")
    samples = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [s["prompt"] for s in samples] == ["abc", "abc", "", ""]
    assert all(set(s) == {"prompt", "text", "tokens", "logprob"} for s in samples)
    assert all(len(s["tokens"]) == len(s["text"]) == 5 and s["logprob"] < 0 for s in samples)
    assert f"abc{samples[0]['text']}\n" in result.stdout
    assert "\033" not in result.stdout


def test_takes_the_checkpoint_asked_for(workdir):
    shown = {
        step: command(f"--workdir={workdir}", "--prompt=a", "--strategy=greedy", f"--step={step}").stdout
        for step in ("1", "2", "best", "latest")
    }
    assert shown["best"] == shown["1"] != shown["2"] == shown["latest"]
    assert len(shown["1"]) == 33  # without --max_new_tokens: up to the context


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--workdir=RUN"),
        (["--workdir=nowhere"], "'nowhere' is not a run"),
        (["--workdir={run}", "--strategy=gredy"], "did you mean 'greedy'?"),
        (["--workdir={run}", "--temperature=0"], "strategy=greedy"),
        (["--workdir={run}", "--top_p=1.5"], "(0, 1]"),
        (["--workdir={run}", "--prompt=aQ"], "'Q'"),
        (["--workdir={run}", "--prompt=abcdefgh", "--max_new_tokens=30"], "8 prompt tokens + 30 new ones"),
        (["--workdir={run}", "--step=7"], "has 1, 2"),
        (["--workdir={run}", "--output=no/such/file"], "no/such"),
        (["--workdir={run}", "--num_sample=3"], "num_sample"),
        (["--workdir={run}", "--config.seed=3"], "--config"),
    ],
)
def test_mistakes_end_in_one_line(workdir, arguments, words):
    result = command(*[a.format(run=workdir) for a in arguments])
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_run_without_a_checkpoint(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((workdir / "tokenizer.json").read_text())
    result = command(f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert "no finished checkpoint" in result.stderr
