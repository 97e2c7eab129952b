"""An evaluation task is a file and a line: one from outside is known to names, options, help and training."""

import os
import subprocess
import sys
from dataclasses import dataclass

from lm.evaluation.metrics.statistics import Figures, proportion
from lm.evaluation.registry import TASKS, described, open_task

TASK = '''
from dataclasses import dataclass

from lm.evaluation.files import read_examples
from lm.evaluation.metrics.statistics import proportion


@dataclass(frozen=True, kw_only=True)
class Short:
    """Share of short texts in {"text"}."""

    path: str
    most: int = 7

    def measure(self, subject):
        texts = [example.get("text") for example in read_examples(self.path)]
        return {"short": proportion(sum(len(text) <= self.most for text in texts), len(texts))}
'''


def test_a_task_from_outside_is_a_file_and_a_line(tmp_path):
    """Its line in the registry is all that the command needs to list and explain it, here before the command starts."""
    (tmp_path / "short.py").write_text(TASK)
    start = "import runpy; from lm.evaluation.registry import TASKS; TASKS['short'] = 'short:Short'; "
    start += "runpy.run_module('lm.evaluate', run_name='__main__', alter_sys=True)"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}."}
    done = subprocess.run([sys.executable, "-c", start, "--help"], env=environment, capture_output=True, text=True, timeout=300)
    assert 'short:FILE        Share of short texts in {"text"}.\n                      ?most=7\n' in done.stdout
    assert "perplexity:FILE   Perplexity of running text" in done.stdout


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A task without a file."""

    count: int = 3

    def measure(self, subject: object) -> Figures:
        return {"half": proportion(self.count / 2, self.count)}


def test_options_are_the_fields(monkeypatch):
    monkeypatch.setitem(TASKS, "constant", f"{__name__}:Constant")
    assert open_task("constant?count=8") == Constant(count=8)
    assert open_task("constant").measure(None)["half"].value == 0.5
    assert "    constant          A task without a file.\n                      ?count=3" in described()
