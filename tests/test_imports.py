"""Imports of the commands: pre-training loads what its config names, and importing `lm` costs nothing."""

import json
import os
import subprocess
import sys

MODULES = """
import json, resource, sys
{code}
lm = {{name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "lm" and module.__file__}}
lines = {{name: len(open(path).read().splitlines()) for name, path in lm.items()}}
print(json.dumps([lines, "jax" in sys.modules, resource.getrusage(resource.RUSAGE_SELF).ru_utime]))
"""
# Rooms of fine-tuning, evaluation and explanation: pre-training a causal model needs none of them.
FOREIGN = ("lm.evaluation.report", "lm.evaluation.attacks", "lm.explain", "lm.objectives.finetune", "lm.data.labelled",
           "lm.data.corpus.augment", "lm.data.corpus.gather", "lm.convert")  # fmt: skip


def imported(code: str) -> tuple[dict[str, int], bool, float]:
    """Run code in a fresh interpreter; return (lines by module of lm, whether jax started, seconds of CPU)."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES.format(code=code)],
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def foreign(lines: dict[str, int], *rooms: str) -> list[str]:
    return [name for name in lines if any(name == room or name.startswith(f"{room}.") for room in (*FOREIGN, *rooms))]


def test_pre_training_imports_what_its_config_names():
    """At most 10,000 lines from the config file to the loop; formats, tasks and samples come where a config asks for them."""
    lines, _, _ = imported("from lm.config import load\nload('configs/gpt_nano.py')\nimport lm.train")
    assert "lm.train" in lines
    assert not foreign(lines, "lm.decode", "lm.evaluation.metrics", "lm.start", "lm.data.text.files", "lm.data.text.tfds")
    assert sum(lines.values()) <= 10_000


def test_a_run_that_samples_loads_no_task(tmp_path):
    """Steps, held-out evaluation, a save and samples, up to the run's last lines (`lm.closing`)."""
    run = "import types\nends = {'close': lambda *_: None, 'ended': lambda *_: {}}\n"
    run += "ends['__file__'] = ''\n"
    run += "sys.modules['lm.closing'] = types.SimpleNamespace(**ends)\n"
    run += "from lm.config import load, override\nfrom lm.train import train\nfrom pathlib import Path\n"
    run += "config = override(load('tests/configs/tiny.py'), [('steps', '2'), ('every.sample', '2'), ('every.save', '2')])\n"
    run += f"train(config, Path({str(tmp_path)!r}))"
    lines, _, _ = imported(run)
    assert (tmp_path / "samples" / "2.txt").exists()
    assert "lm.decode.samples" in lines
    assert not foreign(lines, "lm.evaluation.registry", "lm.evaluation.downstream")


def test_importing_lm_costs_nothing():
    bare = imported("")[2]
    lines, jax, seconds = imported("import lm")
    assert not jax
    assert seconds - bare < 0.2
    assert sum(lines.values()) < 1000
