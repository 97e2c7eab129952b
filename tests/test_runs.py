"""Whole runs as a user starts them: resumed, killed, moved to another mesh, and mistaken."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lm.config import Keep, read_config
from lm.looks import attempted
from lm.preemption import Stop
from lm.training.checkpoint import Checkpoints
from tests import processes
from tests.processes import environment

TINY = "tests/configs/tiny.py"


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Some real text: topics of the interpreter's documentation."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n".join(topics[name] for name in sorted(topics)[:12]), encoding="utf-8")
    return path


def command(*args: str, config: str = TINY) -> list[str]:
    return [sys.executable, "-m", "lm.main", f"--config={config}", *args]


def run(*args: str, config: str = TINY, devices: int = 1) -> subprocess.CompletedProcess:
    return processes.command("lm.main", f"--config={config}", *args, devices=devices)


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert len(found) == len(dict(found)), "a step was logged twice"
    return dict(found)


def parameters(workdir: Path, step: int) -> dict:
    """Every array of a checkpoint, read without the code under test."""
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / "state").absolute())


def identical(left: Path, right: Path, step: int = 12) -> None:
    import jax

    jax.tree.map(np.testing.assert_array_equal, parameters(left, step), parameters(right, step))
    assert losses(left) == losses(right)


@pytest.fixture(scope="session")
def straight(text, tmp_path_factory) -> Path:
    """An uninterrupted run of 12 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    done = run(f"--workdir={workdir}", config=f"{TINY}:text={text}")
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_run_leaves_what_the_interface_promises(straight, text):
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "summary.json", "checkpoints", "loss.png"} <= {
        p.name for p in straight.iterdir()
    }
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["steps"] == 12
    assert summary["tokens"] == 12 * 8 * 32
    assert summary["corpus"]["bytes"] == len(text.read_bytes())
    assert summary["eval/validation/perplexity"] == pytest.approx(np.exp(summary["eval/validation/loss"]))
    assert list(losses(straight)) == list(range(1, 13))
    assert losses(straight)[12] < losses(straight)[1] - 0.5
    logged = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    rates = [line["train/tokens_per_second"] for line in logged if "train/tokens_per_second" in line]
    assert max(rates) < 10 * np.median(rates)  # steps 4, 6, 8 and 12 are looked at, each step is logged
    assert summary["train/tokens_per_second"] == rates[-1]
    assert read_config(straight).objective.model.vocab == 257


def test_the_same_command_on_a_finished_run_changes_nothing(straight, text):
    """Nor does the folder alone, whose config it takes."""
    before = (straight / "metrics.jsonl").read_text()
    for config in ([f"--config={TINY}:text={text}"], []):
        done = processes.command("lm.main", f"--workdir={straight}", *config)
        assert done.returncode == 0, done.stderr
        assert "all its 12 steps" in done.stdout
        assert (straight / "metrics.jsonl").read_text() == before


def interrupt(workdir: Path, text: Path, number: int, after: int, *args: str) -> int:
    """Start the run, send it a signal once `after` steps are logged; return its exit status."""
    process = subprocess.Popen(
        command(f"--workdir={workdir}", *args, config=f"{TINY}:text={text}"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = workdir / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("train/loss") >= after):
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(120)
    process.stderr.close()
    return process.returncode


def test_sigterm_saves_and_the_next_run_ends_bit_identical(straight, text, tmp_path):
    steps = ("--config.steps=12", "--config.every.save=0", "--stop_status=75")
    status = interrupt(tmp_path, text, signal.SIGTERM, 3, *steps)
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved
    assert status == (75 if max(saved) < 12 else 0)
    assert run(f"--workdir={tmp_path}", config=f"{TINY}:text={text}").returncode == 0
    identical(straight, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_signals_of_schedulers_stop_after_a_step(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        for _ in range(2):
            signal.raise_signal(number)
            assert stop.reached(1)
        assert stop.signal == number
    assert signal.getsignal(number) == before


def test_the_first_ctrl_c_is_answered_at_once_and_the_second_ends(capfd):
    with Stop() as stop:
        assert not stop.reached(1)
        signal.raise_signal(signal.SIGINT)
        assert stop.reached(1)
        assert capfd.readouterr().err.strip() == "saving after this step; Ctrl-C again ends at once"
        signal.raise_signal(signal.SIGTERM)  # which a cluster may send more than once: no second Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def kill_and_resume(straight, text, workdir, times: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(times):
        process = subprocess.Popen(
            command(f"--workdir={workdir}", config=f"{TINY}:text={text}"),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        began = (workdir / "checkpoints").exists()
        # Past start-up most of the time: kills during saves and steps are the interesting ones.
        time.sleep(chance.uniform(1.0 if began else 3.0, 12.0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run(f"--workdir={workdir}", config=f"{TINY}:text={text}")
    assert done.returncode == 0, done.stderr
    identical(straight, workdir)


def test_kill_9_loses_nothing_that_was_saved(straight, text, tmp_path):
    assert interrupt(tmp_path, text, signal.SIGKILL, 5) == -signal.SIGKILL
    assert run(f"--workdir={tmp_path}", config=f"{TINY}:text={text}").returncode == 0
    identical(straight, tmp_path)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_bit_identical(straight, text, tmp_path):
    kill_and_resume(straight, text, tmp_path, 20, seed=0)


def test_a_run_that_ended_between_a_save_and_its_evaluation_evaluates_again(straight, text, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    checkpoints = Checkpoints(workdir, Keep())
    before = checkpoints.notes(12)
    checkpoints.amend(12, {"looked": False}, None)  # as it stands before the evaluation
    checkpoints.close()
    (workdir / "summary.json").unlink()
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    torn = [{name: value for name, value in line.items() if "eval/" not in name or line["step"] < 12} for line in lines]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in torn))
    done = run(f"--workdir={workdir}", config=f"{TINY}:text={text}")
    assert done.returncode == 0, done.stderr
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/validation/loss"] == lines[-1]["eval/validation/loss"]
    after = Checkpoints(workdir, Keep(), read_only=True).notes(12)
    assert after["looked"]
    assert after["figures"] == before["figures"]
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 12


def test_a_look_that_fails_is_a_line_and_what_it_needs_is_tried_first(text, tmp_path):
    config = f"{TINY}:text={text}"
    done = run(f"--workdir={tmp_path / 'a'}", "--config.evaluate=perplexity:none.txt", config=config)
    assert done.returncode == 2
    assert "none.txt" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a").exists()  # before the first step
    lines = []
    with attempted("step 6: evaluation", lines.append):
        raise ValueError("two\nlines")
    assert lines == ["step 6: evaluation failed, the run goes on without it: ValueError: two lines"]


def test_a_run_moves_to_another_mesh(straight, text, tmp_path):
    """Half on one device, half on four: the losses stay those of the straight run."""
    assert run(f"--workdir={tmp_path}", "--config.steps=12", config=f"{TINY}:text={text}").returncode == 0
    import shutil

    shutil.rmtree(tmp_path / "checkpoints" / "12")
    moved = run(
        f"--workdir={tmp_path}",
        "--config.mesh.fsdp=2",
        "--config.mesh.tensor=2",
        config=f"{TINY}:text={text}",
        devices=4,
    )
    assert moved.returncode == 0, moved.stderr
    assert "mesh.fsdp: 1 -> 2" in moved.stdout
    expected, found = losses(straight), losses(tmp_path)
    np.testing.assert_allclose([found[s] for s in range(9, 13)], [expected[s] for s in range(9, 13)], rtol=1e-5)


@pytest.mark.slow
def test_a_run_in_stages_goes_on_without_them(straight, text, tmp_path):
    """Steps, held-out loss, samples and a save on two stages; then the same parameters on one device."""
    import jax

    config = f"{TINY}:text={text}"
    stages = run(
        f"--workdir={tmp_path}",
        "--config.mesh.data=2",
        "--config.mesh.stage=2",
        "--config.every.sample=4",
        config=config,
        devices=4,
    )
    assert stages.returncode == 0, stages.stderr
    assert (tmp_path / "samples" / "12.txt").exists()
    expected, found = losses(straight), losses(tmp_path)
    np.testing.assert_allclose([found[s] for s in range(1, 13)], [expected[s] for s in range(1, 13)], rtol=1e-5)
    kept = parameters(tmp_path, 8)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    alone = run(f"--workdir={tmp_path}", "--config.mesh.data=1", "--config.mesh.stage=1", config=config)
    assert alone.returncode == 0, alone.stderr
    assert "mesh.stage: 2 -> 1" in alone.stdout
    found = losses(tmp_path)
    np.testing.assert_allclose([found[s] for s in range(9, 13)], [expected[s] for s in range(9, 13)], rtol=1e-5)
    for mine, theirs in ((kept, parameters(straight, 8)), (parameters(tmp_path, 12), parameters(straight, 12))):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_start_takes_the_weights_of_another_run(straight, text, tmp_path):
    done = run(
        f"--workdir={tmp_path}",
        f"--config.start={straight}",
        "--config.steps=1",
        config=f"{TINY}:text={text}",
    )
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path)[1] < losses(straight)[1] - 0.5


MISTAKES = {
    "unknown field": (["--config.optimizer.lrr=1"], "did you mean 'optimizer.lr'"),
    "bad number": (["--config.steps=many"], "steps"),
    "batch that does not divide": (["--config.micro_batches=3"], "micro_batches=3"),
    "mesh of other size": (["--config.mesh.fsdp=3"], "does not fit 1 device"),
    "missing start": (["--config.start=/nowhere"], "/nowhere"),
    "unknown flag": (["--workdirr=x"], "workdirr"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(name, text, tmp_path):
    args, word = MISTAKES[name]
    done = run(f"--workdir={tmp_path / 'run'}", *args, config=f"{TINY}:text={text}")
    assert done.returncode == 2, done.stderr
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_missing_and_empty_text_are_told(tmp_path):
    for content, word in ((None, "missing.txt"), (b"", "no text"), (b"abc\xff\xfe def" * 40, "UTF-8")):
        path = tmp_path / "missing.txt"
        if content is not None:
            path.write_bytes(content)
        done = run(f"--workdir={tmp_path / 'run'}", config=f"{TINY}:text={path}")
        assert done.returncode == 2, done.stderr
        assert word in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_another_shape_or_corpus_does_not_overwrite_a_run(straight, text, tmp_path):
    before = sorted(p.name for p in (straight / "checkpoints").iterdir())
    other = run(f"--workdir={straight}", "--config.objective.model.width=48", config=f"{TINY}:text={text}")
    assert other.returncode == 2
    assert "shape" in other.stderr.splitlines()[-1]
    words = tmp_path / "other.txt"
    words.write_text("something else entirely\n" * 100)
    other = run(f"--workdir={straight}", config=f"{TINY}:text={words}")
    assert other.returncode == 2
    assert "corpus" in other.stderr.splitlines()[-1]
    assert sorted(p.name for p in (straight / "checkpoints").iterdir()) == before
    assert read_config(straight).objective.model.width == 32


def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(text, tmp_path):
    done = run(
        f"--workdir={tmp_path}",
        "--config.optimizer.lr=1e30",
        "--config.optimizer.clip=0",
        "--config.skip_limit=3",
        "--config.every.save=1",
        config=f"{TINY}:text={text}",
    )
    assert done.returncode == 2, done.stderr
    assert "3 steps in a row" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert saved
    assert all(name.isdigit() for name in saved)  # what had begun to be saved, was


@contextlib.contextmanager
def two_processes(text, workdir, *args: str):
    """Start a run of two processes with two devices each; none outlives the test."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = (f"--workdir={workdir}", "--config.mesh.fsdp=4", *args)
    processes = [
        subprocess.Popen(
            command(*flags, f"--distributed=127.0.0.1:{port},2,{i}", config=f"{TINY}:text={text}"),
            env=environment(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def test_two_processes_train_what_one_does(straight, text, tmp_path):
    with two_processes(text, tmp_path) as processes:
        outputs = [p.communicate(timeout=600) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    expected, found = losses(straight), losses(tmp_path)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.slow
def test_ctrl_c_in_one_of_two_processes_saves_the_run(text, tmp_path):
    endless = ("--config.steps=100000", "--config.every.evaluate=0", "--config.every.save=0")
    log = tmp_path / "metrics.jsonl"
    with two_processes(text, tmp_path, *endless) as processes:
        while not (log.exists() and "train/loss" in log.read_text()):
            assert all(p.poll() is None for p in processes)
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGINT)
        outputs = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 130], outputs
    stopped = re.search(r"stopped at step (\d+) and saved", outputs[0][0])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [stopped[1]]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_at_work_ends_the_other_in_a_line(text, tmp_path, victim):
    endless = ("--config.steps=100000", "--config.every.evaluate=0", "--config.every.save=4")
    with two_processes(text, tmp_path, *endless) as processes:
        while not any(p.name.isdecimal() for p in tmp_path.glob("checkpoints/*")):
            assert all(p.poll() is None for p in processes)
            time.sleep(0.05)
        processes[victim].kill()
        _, err = processes[1 - victim].communicate(timeout=60)
    assert processes[1 - victim].returncode == 75
    assert len(err.splitlines()) == 1, err
    line = err.strip()
    assert re.fullmatch(rf"error: process {victim} of 2 at .* died; the last save is {tmp_path}/checkpoints/\d+, .*", line)


@pytest.mark.slow
def test_a_process_that_hangs_counts_as_dead(text, tmp_path):
    """It answers no more, while the kernel keeps its connections open: jax's heartbeats tell."""
    endless = ("--config.steps=100000", "--config.every.evaluate=0", "--config.every.save=4", "--heartbeat_timeout=10")
    with two_processes(text, tmp_path, *endless) as processes:
        while not any(p.name.isdecimal() for p in tmp_path.glob("checkpoints/*")):
            assert all(p.poll() is None for p in processes)
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        _, err = processes[0].communicate(timeout=120)
        assert time.monotonic() - began < 30
    assert processes[0].returncode == 75
    assert f"the last save is {tmp_path}/checkpoints/" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_job_whose_process_is_killed_ends_as_an_undisturbed_one(text, tmp_path):
    """Four processes; kill -9 of one, found by its place among the children of `launch.local`."""

    def job(workdir: Path) -> subprocess.Popen:
        line = command(f"--workdir={workdir}", "--config.mesh.fsdp=4", "--config.steps=24", config=f"{TINY}:text={text}")
        full = [sys.executable, "-m", "launch.local", "--processes=4", "--", *line]
        return subprocess.Popen(full, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def arrays(workdir: Path) -> dict[str, str]:
        return json.loads((workdir / "checkpoints" / "24" / "notes" / "metadata").read_text())["arrays"]

    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    quiet = job(calm)
    _, err = quiet.communicate(timeout=600)
    assert quiet.returncode == 0, err
    process = job(disturbed)
    while not any(p.name.isdecimal() for p in disturbed.glob("checkpoints/*")):
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[3]), signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert err.count("all 4 start again and resume (restart 1 of 3)") == 1, err
    assert "Traceback" not in err
    assert arrays(calm) == arrays(disturbed)  # checksums of every array of the state
    assert losses(calm) == losses(disturbed)
    values = [json.loads((folder / "summary.json").read_text())["eval/validation/loss"] for folder in (calm, disturbed)]
    assert values[0] == values[1]


def evaluate(*args: str) -> subprocess.CompletedProcess:
    return processes.command("lm.evaluate", *args)


def test_evaluate_repeats_the_figures_of_the_run(straight, tmp_path):
    done = evaluate(f"--workdir={straight}", f"--output={tmp_path / 'f.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())["validation"]
    summary = json.loads((straight / "summary.json").read_text())
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy"):
        assert found[name] == pytest.approx(summary[f"eval/validation/{name}"], rel=1e-5)


def test_evaluate_scores_each_token_given_those_before_it(straight, tmp_path):
    output = tmp_path / "f.json"
    done = evaluate(f"--workdir={straight}", "--text=the", "--text=then", f"--output={output}")
    assert done.returncode == 0, done.stderr
    short, long = json.loads(output.read_text())["text"]
    assert short["ids"] == list(b"the")
    assert short["tokens"] == ["t", "h", "e"]
    np.testing.assert_allclose(long["logprobs"][:3], short["logprobs"], rtol=1e-5)  # later tokens are not seen
    assert short["sum"] == pytest.approx(sum(short["logprobs"]))
    assert short["perplexity"] == pytest.approx(np.exp(-short["sum"] / 3))
    past = evaluate(f"--workdir={straight}", "--text=" + "x" * 99)
    assert past.returncode == 2
    assert "99 tokens" in past.stderr


def test_evaluate_refuses_text_that_is_not_the_runs(straight, text, tmp_path):
    workdir, other = tmp_path / "run", tmp_path / "other.txt"
    shutil.copytree(straight, workdir)
    other.write_text("other lines\n" * 300)
    path = workdir / "config.json"
    path.write_text(path.read_text().replace(str(text), str(other)))
    done = evaluate(f"--workdir={workdir}")
    assert done.returncode == 2, done.stdout
    assert f"the corpus is not the one that {workdir} was trained with" in done.stderr.splitlines()[-1]
