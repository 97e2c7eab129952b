"""Whole runs of other objectives than the causal one: resumed with their memory, looked at, measured again."""

import json
import shutil
import subprocess
import sys

import pytest

from lm.config import load
from tests.marks import quick
from tests.processes import command, environment
from tests.test_runs import identical, losses, run

STEPS = ("--config.steps=4", "--config.every.save=2", "--config.every.evaluate=4", "--config.every.log=1")


@pytest.mark.parametrize("spec", quick(["tiny_recurrent.py", "tiny_mixture.py:take=one"], ["tiny_recurrent.py"]))
def test_memory_goes_on_where_it_was(spec, tmp_path):
    """Steps again from a checkpoint in the middle: the same to the bit, what is carried from step to step included."""
    steps = ("--config.steps=4", "--config.every.save=2", "--config.every.evaluate=4", "--config.every.log=1")
    straight, again = tmp_path / "straight", tmp_path / "again"
    done = run(f"--workdir={straight}", *steps, config=f"tests/configs/{spec}")
    assert done.returncode == 0, done.stderr
    shutil.copytree(straight, again)
    shutil.rmtree(again / "checkpoints" / "4")
    done = run(f"--workdir={again}", *steps, config=f"tests/configs/{spec}")
    assert done.returncode == 0, done.stderr
    assert "going on from step 2" in done.stdout
    identical(straight, again, step=4)
    assert set(losses(again)) == {1, 2, 3, 4}


def test_masked_tokens_are_shown_and_measured(tmp_path):
    done = run(f"--workdir={tmp_path}", *STEPS, "--config.every.sample=4", config="tests/configs/tiny_masked.py")
    assert done.returncode == 0, done.stderr
    assert "guess" in (tmp_path / "samples" / "4.txt").read_text(encoding="utf-8")
    output = tmp_path / "found.json"
    again = command("lm.evaluate", f"--workdir={tmp_path}", f"--output={output}")
    assert again.returncode == 0, again.stderr
    summary, found = json.loads((tmp_path / "summary.json").read_text()), json.loads(output.read_text())["validation"]
    assert found["mlm"] == pytest.approx(summary["eval/validation/mlm"], rel=1e-5)
    assert found["loss"] == pytest.approx(sum(found[k] for k in ("mlm", "pair") if k in found), rel=1e-5)
    assert "perplexity" not in found  # masked tokens are no running text
    refused = command("lm.generate", f"--workdir={tmp_path}", "--prompt=The")
    assert refused.returncode == 2
    assert "left to right" in refused.stderr
    scored = command("lm.evaluate", f"--workdir={tmp_path}", "--text=The", f"--output={output}")
    assert scored.returncode == 0, scored.stderr
    (text,) = json.loads(output.read_text())["text"]  # each token hidden in turn
    assert len(text["logprobs"]) == len(text["ids"])
    assert max(text["logprobs"]) < 0


def test_a_dry_run_shows_rows_and_trains_nothing(tmp_path):
    done = command("lm.objectives.span", "--config=tests/configs/tiny_span.py", "--dry_run", f"--workdir={tmp_path / 'none'}")
    assert done.returncode == 0, done.stderr
    assert "<extra_id_0>" in done.stdout
    assert "source_segments" in done.stdout
    assert not (tmp_path / "none").exists()


def test_the_list_of_objectives():
    done = command("lm.objectives")
    assert done.returncode == 0, done.stderr
    systems = (
        "GPT DialoGPT LSTM BERT RoBERTa ERNIE ALBERT MacBERT BERT-wwm ELECTRA XLNet Transformer-XL T5 UL2 BART SimCSE "
        "prefix-LM Mask-Predict Vaswani CRF MT-DNN Sentence-BERT R-Drop SQuAD"
    )
    files = "albert_base ernie_base bert_wwm_chinese_nano macbert_base ul2_base dialogpt_small tag_people"
    words = ("Masked", "Devlin et al. 2019", "configs/bert_nano.py", "places targets weights")
    for word in (*words, *systems.split(), *files.split()):
        assert word in done.stdout


@pytest.mark.parametrize("name", quick(["tiny_seq2seq", "tiny_mixture"], ["tiny_mixture"]))
def test_compiles_without_a_corpus(name):
    """Whole documents, and a model that each part of a mixture has for itself."""
    done = command("lm.compile", f"--config=tests/configs/{name}.py")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout


def test_every_row_of_the_learning_table_has_its_config():
    """In a process of its own: two commands imported into one declare the same flags."""
    names = "import sys; from absl import flags; from launch import learning; flags.FLAGS(['test']);"
    names += "print(' '.join(row.config for row in learning.rows()))"
    done = subprocess.run([sys.executable, "-c", names], env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "gpt_nano" in done.stdout
    for name in done.stdout.split():
        assert load(f"configs/{name}.py").steps > 0
