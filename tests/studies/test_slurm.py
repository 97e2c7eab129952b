"""Sweeps on a real cluster: the daemons of SLURM on this machine; runs end as on this machine alone, bit for bit."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from lm.config import load
from lm.errors import UserError
from lm.outputs import Claim, replace_file
from lm.studies import slurm
from lm.studies.job import Job, slot
from lm.studies.measures import Measures, Missing
from lm.studies.plan import Measure
from tests.processes import command, environment
from tests.studies.virtual_cluster import ROOT, virtual_cluster

lacking = [
    reason
    for absent, reason in (
        (shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None, "Debian's slurmctld, slurmd and munge"),
        (importlib.util.find_spec("submitit") is None, "submitit"),
        (os.getuid() != 0, "root, to start daemons"),
    )
    if absent
]
needs_slurm = pytest.mark.skipif(bool(lacking), reason=f"needs {', '.join(lacking)}")
STEPS = 240


@pytest.fixture
def cluster():
    # Not below tmp_path: the daemons' sockets have names of 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, virtual_cluster(Path(folder), 2) as running:
        yield running


def text(folder: Path) -> Path:
    """Write a text."""
    (folder / "a.txt").write_text("\n\n".join(f"The file number {i} is in the folder of the user." for i in range(300)))
    return folder / "a.txt"


def local(*arguments: object) -> subprocess.CompletedProcess:
    """Run `python -m launch.sweep` on this machine."""
    line = [sys.executable, "-m", "launch.sweep", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A study of two arms and two seeds by the local engine: its folder, and the arguments of the same on a cluster."""
    folder = tmp_path_factory.mktemp("local")
    arguments = [
        f"--config=tests/configs/tiny.py:text={text(folder)}", "--grid=optimizer.lr=1e-2,2e-2", "--seeds=2", f"--steps={STEPS}",
        "--config.every.save=50", "--config.every.evaluate=100",
    ]  # fmt: skip
    done = local(*arguments, f"--workdir={folder / 'study'}", "--go")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "study", arguments


@pytest.fixture
def study(tmp_path, reference):
    """The folder of the same study on a cluster, where its network is measured already; and its arguments."""
    shutil.copytree(reference[0] / "measures", tmp_path / "study" / "measures")
    return tmp_path / "study", [*reference[1], f"--workdir={tmp_path / 'study'}"]


def lines(workdir: Path) -> list[dict]:
    """Return the logged lines of a run."""
    with contextlib.suppress(OSError):
        return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return []


def losses(folder: Path) -> dict[str, dict[int, list]]:
    """Return the losses of each run by step; a step that was taken again after a loss counts once, as the last one."""
    return {
        path.name: {one["step"]: [one.get("train/loss"), one.get("eval/validation/loss")] for one in lines(path)}
        for path in sorted((folder / "runs").iterdir())
    }


def check_same(folder: Path, reference: Path, runs: int) -> None:
    """Check that all runs took every step and logged the losses of the local engine, bit for bit."""
    found = losses(folder)
    assert len(found) == runs
    assert found.items() <= losses(reference).items()
    assert all(set(one) == set(range(1, STEPS + 1)) for one in found.values())


def consoles(folder: Path) -> dict[str, int]:
    """Return how many sittings each run had."""
    return {path.parent.name: path.read_text().count("compiled;") for path in folder.glob("runs/*/console.txt")}


def training(folder: Path, least: int = 20, most: int = STEPS) -> list[Path]:
    """Return the runs that are under way."""
    return [path for path in folder.glob("runs/*") if least <= max((one["step"] for one in lines(path)), default=0) < most]


def job_of(workdir: Path) -> str:
    """Return the id of a run's job."""
    return json.loads((workdir / "job.json").read_text())["job"]


def finish(cluster, process, seconds: float = 240) -> str:
    """Wait for a sweep while requeued jobs are started at once; return its output."""
    last = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < last, (cluster.folder.parent / "out").read_text()
        cluster.restart_requeued()
        time.sleep(0.5)
    return (cluster.folder.parent / "out").read_text()


def submitted(folder: Path) -> int:
    """Return how many jobs were submitted."""
    return len(list((folder / "jobs").glob("*_submitted.pkl")))


# -- without a cluster -------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(monkeypatch):
    for sbatch, spec, message in ((None, None, "no sbatch"), ("/usr/bin/sbatch", None, "pip install submitit")):
        monkeypatch.setattr(slurm.shutil, "which", lambda name, found=sbatch: found)
        monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name, found=spec: found)
        with pytest.raises(UserError, match=message):
            slurm.check_cluster()
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: "found")
    slurm.check_cluster()


@pytest.mark.parametrize(
    ("record", "works"), [({"name": "a"}, True), ({"name": "b"}, False), ({"name": "a", "cancelled": True}, False), ({}, False)]
)
def test_a_job_works_only_while_the_record_names_it(tmp_path, record, works):
    """Of two sweeps' jobs on a file system without locks one runs; and a cancelled job that is requeued ends."""
    workdir = tmp_path / "runs" / "1234"
    workdir.mkdir(parents=True)
    replace_file(workdir / "arm.json", "{}")
    replace_file(workdir / "job.json", json.dumps(record))
    claim = Job(str(tmp_path), "a", 1, 60).claim(workdir)
    assert (claim is not None) == works
    if claim:
        claim.close()


@pytest.mark.parametrize("left", [True, False])
def test_a_requeued_job_waits_for_the_lock_of_a_lost_one(tmp_path, left):
    """Whose node is lost to SLURM only, and trains on: it may end the run, or leave work."""
    workdir = tmp_path / "runs" / "1234"
    workdir.mkdir(parents=True)
    for name, content in (("arm", {}), ("job", {"name": "a"}), ("config", {"steps": 9})):
        replace_file(workdir / f"{name}.json", json.dumps(content))
    lost, released = Claim(workdir / "arm.json", ""), []

    def end():
        replace_file(workdir / "summary.json", json.dumps({"steps": 4 if left else 9}))
        released.append(time.monotonic())
        lost.close()

    timer = threading.Timer(0.3, end)
    timer.start()
    claim = Job(str(tmp_path), "a", 1, 60).claim(workdir)
    assert (claim is not None) == left
    assert released
    if claim:
        claim.close()
    timer.join()


def test_neighbours_take_different_cores(monkeypatch):
    monkeypatch.setattr("lm.studies.job.available_cores", lambda: [2, 3, 6, 7])
    monkeypatch.setattr("lm.studies.job.has_accelerator", lambda: False)
    found = []
    for job in "78":
        monkeypatch.setenv("SLURM_JOB_ID", job)
        found.append(slot(2).cores)
    assert sorted(found) == ["2,3", "6,7"]
    assert slot(4).cores == ""


# -- on a cluster ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_slurm
def test_a_sweep_runs_as_jobs(cluster, tmp_path):
    spec = f"tests/configs/tiny.py:text={text(tmp_path)}"
    with pytest.raises(Missing) as missing:
        Measures(tmp_path / "study")(load(spec), None)
    sizes = Measure("", 1, 256.0, 1.0, 0.01, 1, 1, 1.0, "log-likelihood")  # a plan's figures, of which no run depends
    place = tmp_path / "study" / "measures" / missing.value.key
    place.mkdir(parents=True)
    replace_file(place / "measure.json", json.dumps({k: v for k, v in asdict(sizes).items() if k != "key"}))
    arguments = [
        "--grid=optimizer.lr=1e-2",
        "--seeds=1",
        "--steps=3",
        f"--workdir={tmp_path / 'study'}",
        "--backend=slurm",
        "--go",
    ]
    done = command("launch.sweep", f"--config={spec}", *arguments, variables=cluster.variables, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "queued   1 run as job" in done.stdout
    assert "done     lr=1e-2, seed 0" in done.stdout
    assert [[one["step"] for one in lines(path)] for path in (tmp_path / "study" / "runs").iterdir()] == [[1, 2, 3]]
    assert list(consoles(tmp_path / "study").values()) == [1]
    assert not cluster.jobs()


@needs_slurm
@pytest.mark.slow
def test_runs_are_those_of_the_local_engine(cluster, study, reference, tmp_path):
    """And --jobs bounds how many run at a time; a second call has nothing to do."""
    process = cluster.sweep(*study[1], "--jobs=1", folder=tmp_path)
    most = 0
    while process.poll() is None:
        most = max(most, sum(state == "RUNNING" for _, _, state, _ in cluster.jobs()))
        time.sleep(0.2)
    assert process.returncode == 0, (tmp_path / "out").read_text()
    assert most == 1
    check_same(study[0], reference[0], 4)
    assert cluster.sweep(*study[1], folder=tmp_path).wait(timeout=120) == 0
    assert submitted(study[0]) == 4


@needs_slurm
@pytest.mark.slow
def test_a_preempted_job_goes_on(cluster, study, reference, tmp_path):
    process = cluster.sweep(*study[1], "--seeds=1", folder=tmp_path)
    cluster.until(lambda: training(study[0]))
    cut = {path.name for path in training(study[0])}
    (tmp_path / "high.sh").write_text("#!/bin/bash\nsleep 3\n")
    high = cluster.call("sbatch", "--parsable", "-phigh", "-N2", f"--output={os.devnull}", str(tmp_path / "high.sh")).strip()
    cluster.until(lambda: any(job == high and state == "RUNNING" for job, _, state, _ in cluster.jobs()))
    assert not any(state == "RUNNING" for job, _, state, _ in cluster.jobs() if job != high)
    steps = {name: max(one["step"] for one in lines(study[0] / "runs" / name)) for name in cut}
    for name, step in steps.items():  # saved at the step at which it was cut, not at the last multiple of 50
        assert step < STEPS
        assert (study[0] / "runs" / name / "checkpoints" / str(step)).is_dir()
    out = finish(cluster, process)
    assert process.returncode == 0, out
    assert "failed" not in out, out
    check_same(study[0], reference[0], 2)
    assert all(consoles(study[0])[name] == 2 for name in cut)
    assert submitted(study[0]) == 2


@needs_slurm
@pytest.mark.slow
def test_a_job_saves_before_its_time_is_over(cluster, study, reference, tmp_path):
    """SIGUSR2, which SLURM sends to all processes of a job before its time limit."""
    process = cluster.sweep(*study[1], "--seeds=1", folder=tmp_path)
    cluster.until(lambda: training(study[0]))
    cut = {path.name for path in training(study[0])}
    for name in cut:
        cluster.call("scancel", "--signal=USR2", job_of(study[0] / "runs" / name))
    out = finish(cluster, process)
    assert process.returncode == 0, out
    assert not {"failed", "again"} & set(out.split()), out
    check_same(study[0], reference[0], 2)
    assert all(consoles(study[0])[name] == 2 for name in cut)
    assert submitted(study[0]) == 2


@needs_slurm
@pytest.mark.slow
def test_a_job_without_progress_is_not_requeued(cluster, study, tmp_path, monkeypatch):
    """A start that takes longer than the limit would be repeated for ever: it fails, is tried again, and says why."""
    (tmp_path / "slow").mkdir()
    # Of the training alone: the sweep and the job import no such module.
    (tmp_path / "slow" / "sitecustomize.py").write_text("import sys, time\nif 'lm.main' in sys.orig_argv: time.sleep(600)\n")
    cluster.variables["PYTHONPATH"] = f"{tmp_path / 'slow'}:{cluster.variables['PYTHONPATH']}"
    process = cluster.sweep(*study[1], "--seeds=1", "--minutes=1", folder=tmp_path)
    out = finish(cluster, process, 400)
    assert process.returncode == 1
    for arm in ("lr=1e-2", "lr=2e-2"):
        for word in ("again ", "failed"):
            assert f"{word}   {arm}, seed 0: error: no step was saved before the limit of a job, --minutes=1" in out, out


@needs_slurm
@pytest.mark.slow
def test_a_cancelled_job_is_submitted_again(cluster, study, reference, tmp_path):
    """By hand, or on a cluster that cancels what it preempts: no failure while the run gets on."""
    process = cluster.sweep(*study[1], "--seeds=1", folder=tmp_path)
    cluster.until(lambda: training(study[0]))
    cut = training(study[0])
    for path in cut:
        cluster.call("scancel", job_of(path))
    out = finish(cluster, process)
    assert process.returncode == 0, out
    assert out.count("its job ended at step") == len(cut), out
    check_same(study[0], reference[0], 2)
    assert submitted(study[0]) == 2 + len(cut)


@needs_slurm
@pytest.mark.slow
def test_a_job_that_dies_is_a_failure(cluster, study, tmp_path):
    """Without a word in the run's own console: the last line is that of the job."""
    (tmp_path / "dying").mkdir()
    (tmp_path / "dying" / "sitecustomize.py").write_text(
        "import os, sys\nif 'submitit.core._submit' in sys.orig_argv:\n    print('no such luck', flush=True)\n    os._exit(3)\n"
    )
    cluster.variables["PYTHONPATH"] = f"{tmp_path / 'dying'}:{cluster.variables['PYTHONPATH']}"
    process = cluster.sweep(*study[1], "--seeds=1", folder=tmp_path)
    out = finish(cluster, process)
    assert process.returncode == 1
    for arm in ("lr=1e-2", "lr=2e-2"):
        rows = [row for row in out.splitlines() if row.startswith((f"again    {arm}, seed 0", f"failed   {arm}, seed 0"))]
        assert len(rows) == 2
        assert all("ended before the run did" in row for row in rows)
    assert submitted(study[0]) == 4


@needs_slurm
@pytest.mark.slow
def test_a_lost_node_loses_no_run(cluster, study, reference, tmp_path):
    process = cluster.sweep(*study[1], "--seeds=1", folder=tmp_path)
    cluster.until(lambda: training(study[0], least=60))
    (cut, *_) = training(study[0], least=60)
    node = cluster.call("squeue", "-hro%N", f"--jobs={job_of(cut)}").strip()
    cluster.kill_node(int(node.rpartition(".")[2]))
    cluster.until(lambda: any(state == "PENDING" and not node for _, _, state, node in cluster.jobs()), 90)
    out = finish(cluster, process)
    assert process.returncode == 0, out
    assert not {"failed", "again"} & set(out.split()), out
    check_same(study[0], reference[0], 2)
    assert consoles(study[0])[cut.name] == 2
    assert submitted(study[0]) == 2


@needs_slurm
@pytest.mark.slow
def test_a_killed_sweep_finds_its_jobs(cluster, study, reference, tmp_path):
    process = cluster.sweep(*study[1], "--seeds=1", "--jobs=1", folder=tmp_path)
    cluster.until(lambda: training(study[0]))
    process.kill()
    process.wait()
    assert len(cluster.jobs()) == 2
    both = [cluster.sweep(*study[1], "--seeds=1", "--jobs=1", folder=tmp_path) for _ in range(2)]  # two at once, moreover
    for one in both:
        out = finish(cluster, one)
        assert one.returncode == 0, out
        assert not {"failed", "again"} & set(out.split()), out
    check_same(study[0], reference[0], 2)
    assert set(consoles(study[0]).values()) == {1}
    assert submitted(study[0]) == 2


@needs_slurm
@pytest.mark.slow
def test_a_run_that_fails_is_tried_once_more(cluster, study, reference, tmp_path):
    arguments = [one.replace("2e-2", "1e30") for one in study[1]]
    process = cluster.sweep(*arguments, "--seeds=1", folder=tmp_path)
    out = finish(cluster, process)
    assert process.returncode == 1
    assert out.count("again    lr=1e30, seed 0: error: the loss or its gradient was not finite") == 1, out
    assert out.count("failed   lr=1e30, seed 0: error: the loss or its gradient was not finite") == 1, out
    assert "done     lr=1e-2, seed 0" in out
    good = {name: one for name, one in losses(study[0]).items() if len(one) == STEPS}
    assert len(good) == 1
    assert good.items() <= losses(reference[0]).items()
    assert submitted(study[0]) == 3


@needs_slurm
@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_nothing_in_the_queue(cluster, study, reference, tmp_path):
    process = cluster.sweep(*study[1], "--seeds=1", "--jobs=1", folder=tmp_path)
    cluster.until(lambda: training(study[0]))
    cut = {path.name for path in training(study[0])}
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    out = (tmp_path / "out").read_text()
    assert "stopping: jobs that wait are cancelled (1), those that run save and end (1)" in out
    assert "--go --backend=slurm" in out
    assert not cluster.jobs()
    for name in cut:
        step = max(one["step"] for one in lines(study[0] / "runs" / name))
        assert step < STEPS
        assert (study[0] / "runs" / name / "checkpoints" / str(step)).is_dir()
    process = cluster.sweep(f"--workdir={study[0]}", folder=tmp_path)
    finish(cluster, process)
    assert process.returncode == 0
    check_same(study[0], reference[0], 2)
    assert all(consoles(study[0])[name] == 2 for name in cut)


@needs_slurm
@pytest.mark.slow
def test_stages_follow_one_another(cluster, tmp_path):
    (tmp_path / "two.py").write_text(f"""
from lm.config import load
from lm.studies.study import Arm, Budget, Study

def study():
    config = load("{ROOT}/tests/configs/tiny.py:text={text(tmp_path)}")
    return Study(
        name="two stages", arms=(Arm(name="one", stages=(config,)), Arm(name="two", stages=(config, config))),
        seeds=(0,), budget=Budget(steps=20), downstream={{"after": config}},
    )
""")
    process = cluster.sweep(f"--study={tmp_path / 'two.py'}", f"--workdir={tmp_path / 'study'}", folder=tmp_path)
    out = finish(cluster, process)
    assert process.returncode == 0, out
    done = [row.removeprefix("done     ") for row in out.splitlines() if row.startswith("done ")]
    assert sorted(done) == ["one, seed 0", "one, seed 0, after", "two, seed 0", "two, seed 0, after", "two, seed 0, stage-1"]
    assert done.index("two, seed 0, stage-1") < done.index("two, seed 0") < done.index("two, seed 0, after")
