"""Sweeps through the command: every run once, whatever is killed; the same figures as a run by itself."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.studies.results import read_results
from lm.studies.runs import ended, state_of
from lm.training.writers import parse_metrics
from tests.processes import xla_flags

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def text(tmp_path):
    rng, words = (
        random.Random(0),
        ["the", "a", "cat", "dog", "sees", "runs", "house", "tree", "red", "blue", "and", "of", "in", "on"],
    )
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(words) for _ in range(60)) for _ in range(120)))
    return path


def sweep(text, folder, *more, grid="optimizer.lr=1e-3,1e-2", wait=True):
    """Start the command in a session of its own."""
    command = [sys.executable, "-m", "launch.sweep", f"--config=tests/configs/tiny.py:text={text}", f"--grid={grid}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(1), "LM_CACHE": str(text.parent / "cache")}
    process = subprocess.Popen(
        [*command, f"--workdir={folder}", *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    if not wait:
        return process
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def losses(workdir):
    return {line["step"]: line["train/loss"] for line in parse_metrics(workdir / "metrics.jsonl")}


def kill_all(process, folder):
    """SIGKILL to the sweep and to the runs that it has started."""
    own = [process.pid]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in path.read_text():
                own.append(int(path.parent.name))
        except OSError:
            continue
    for pid in own:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    process.stdout.close()


def test_a_sweep_that_is_killed_goes_on(tmp_path, text):
    """Plan, kill -9 of all processes, go on; the figures are those of a run that nobody touched."""
    folder = tmp_path / "study"
    status, output = sweep(text, folder, "--seeds=2", "--steps=8")
    assert status == 0
    assert "4 runs, 0 done" in output
    assert "nothing is run without --go" in output
    assert not (folder / "runs").exists()

    killed = sweep(text, folder, "--seeds=2", "--steps=8", "--go", wait=False)
    while not any(folder.glob("runs/*/checkpoints/4")):
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.05)
    kill_all(killed, folder)

    status, output = sweep(text, folder, "--seeds=2", "--steps=8", "--go")
    assert status == 0, output
    study, outcomes = read_results(folder)
    assert [(one.arm, one.seed, one.state) for one in outcomes] == [(a.name, s, "done") for a in study.arms for s in (0, 1)]
    assert len({one.figures["eval/validation/loss"] for one in outcomes}) == 4
    for name in ("study.json", "plan.json", "report.md", "report.html", "results.csv", "comparisons.csv"):
        assert (folder / name).exists()
    assert any("going on from step 4" in (one.folders["train"] / "console.txt").read_text() for one in outcomes)

    one = outcomes[1]
    label = json.loads((one.folders["train"] / "arm.json").read_text())
    assert label == {"study": "study", "arm": "lr=1e-3", "seed": 1, "stage": "train", "fields": {"optimizer.lr": "0.001"}}
    alone = tmp_path / "alone"
    config = one.folders["train"] / "config.json"
    environment = os.environ | {"LM_CACHE": str(text.parent / "cache"), "XLA_FLAGS": xla_flags(1)}
    command = [sys.executable, "-m", "lm.studies.pinned", "0", "lm.main", f"--config={config}", f"--workdir={alone}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert losses(alone) == losses(one.folders["train"])

    # The same command again runs nothing; a seed more runs what is missing alone.
    status, output = sweep(text, folder, "--seeds=2", "--steps=8", "--go")
    assert "done     " not in output
    assert "4 runs, 4 done" in output


@pytest.mark.slow
def test_a_run_that_fails_is_tried_again_and_named(tmp_path, text):
    """The others end; the failure's last line is shown, and the status is 1."""
    folder = tmp_path / "study"
    grid = "optimizer.lr=1e-2,1e30"
    status, output = sweep(text, folder, "--seeds=1", "--steps=4", "--config.skip_limit=1", "--go", grid=grid)
    assert status == 1
    assert output.count("again    lr=1e30, seed 0") == output.count("failed   lr=1e30, seed 0") == 1
    assert "not finite" in output
    states = {one.arm: one.state for one in read_results(folder)[1]}
    assert states == {"lr=1e-2": "done", "lr=1e30": "failed"}


@pytest.mark.slow
def test_ten_kills_and_two_callers(tmp_path, text):
    """Ten SIGKILLs at random, then two callers at once: figures bit for bit those of a sweep left alone, no run done twice."""
    rng, folder, calm = random.Random(1), tmp_path / "study", tmp_path / "calm"
    more = ("--seeds=3", "--steps=40", "--config.every.save=5", "--go")
    assert sweep(text, calm, *more)[0] == 0
    for _ in range(10):
        process = sweep(text, folder, *more, wait=False)
        time.sleep(rng.uniform(3, 14))
        if rng.random() < 0.5:
            kill_all(process, folder)
        else:  # the sweep alone: its runs go on without it
            process.kill()
            process.wait()
            process.stdout.close()
    both = [sweep(text, folder, *more, wait=False) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], [process.stdout.read() for process in both]
    untouched = {one.hash: one for one in read_results(calm)[1]}
    for one in read_results(folder)[1]:
        assert one.state == "done"
        other = untouched[one.hash].folders["train"]
        assert losses(one.folders["train"]) == losses(other)
        assert one.figures["eval/validation/loss"] == untouched[one.hash].figures["eval/validation/loss"]
        # A run that is done is not started again: one summary, and one line of its end.
        assert (one.folders["train"] / "console.txt").read_text().count("40 steps in") == 1
    assert all(ended(path) and state_of(path) == "done" for path in folder.glob("runs/*"))
