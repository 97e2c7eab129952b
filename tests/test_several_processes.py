"""Looks of a run in two processes that share its parameters: samples, tasks, predictions and patience as in one process."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import environment
from tests.test_runs import text  # noqa: F401  (a fixture)

CLASSIFY = ("--config=tests/configs/tiny_classify.py", "--config.steps=60", "--config.every.evaluate=2",
            "--config.every.save=2", "--config.every.sample=0", "--config.optimizer.lr=0.05", "--config.stop.patience=2",
            "--config.stop.metric=examples/accuracy")  # fmt: skip


def jobs(count: int, workdir: Path, *flags: str) -> str:
    """Run lm.main as `count` processes of one device each, parameters sharded over all; return the output of process 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [
        sys.executable,
        "-m",
        "lm.main",
        f"--workdir={workdir}",
        "--config.mesh.data=1",
        f"--config.mesh.fsdp={count}",
        *flags,
    ]
    each = [[*line, f"--distributed=127.0.0.1:{port},{count},{i}"] if count > 1 else line for i in range(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(one, env=environment(1), **pipes) for one in each]
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, outputs
    return outputs[0]


def figures(workdir: Path) -> dict[str, float]:
    """Return what summary.json says of the held-out split and of tasks."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name.startswith("eval/") or name in ("steps", "best_step")}


@pytest.mark.slow
def test_predictions_and_patience(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert "stopped early at step" in jobs(1, one, *CLASSIFY)
    assert "stopped early at step" in jobs(2, two, *CLASSIFY)
    assert "eval/validation/examples/accuracy" in figures(one)
    assert figures(two) == pytest.approx(figures(one), rel=1e-4)
    rows = [[json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()] for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 5
    for a, b in zip(*rows):
        assert (a["where"], a["gold"], a["guess"]) == (b["where"], b["gold"], b["guess"])
        assert b["confidence"] == pytest.approx(a["confidence"], rel=1e-3)


@pytest.mark.slow
def test_samples_and_a_task(tmp_path, text):  # noqa: F811
    (tmp_path / "other.txt").write_text("The file is in the folder of the user.\n" * 5)
    flags = (f"--config=tests/configs/tiny.py:text={text}", f"--config.evaluate=perplexity:{tmp_path}/other.txt",
             "--config.every.sample=12")  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    jobs(1, one, *flags)
    jobs(2, two, *flags)
    assert "eval/other/perplexity" in figures(one)
    assert figures(two) == pytest.approx(figures(one), rel=1e-4)
    samples = [(folder / "samples" / "12.txt").read_text() for folder in (one, two)]
    assert samples[0].startswith("--- sample ---")
    assert samples[0] == samples[1]
