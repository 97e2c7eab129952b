"""Scripts for clusters: a job of SLURM's own daemons, disturbed; a stand-in for gcloud; fields of the JobSet and the image."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from tests.processes import environment
from tests.studies.virtual_cluster import ROOT, virtual_cluster
from tests.test_runs import losses, text  # noqa: F401  (a fixture)

STEPS, SAVE = 240, 20
found = shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is not None and os.getuid() == 0
needs_slurm = pytest.mark.skipif(not found, reason="needs Debian's slurmctld, slurmd and munge, and root, to start daemons")


def saves(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal())


@needs_slurm
@pytest.mark.slow
def test_a_job_on_two_nodes_is_requeued_and_ends_as_an_undisturbed_one(text, tmp_path):  # noqa: F811
    """Signalled ahead of its time limit, preempted, and with a process killed: four sittings, the figures of one."""
    flags = [
        f"--config=tests/configs/tiny.py:text={text}", f"--config.steps={STEPS}", f"--config.every.save={SAVE}",
        "--config.every.evaluate=0", "--config.mesh.data=1", "--config.mesh.fsdp=2",
    ]  # fmt: skip
    line = [sys.executable, "-m", "launch.local", "--processes=2", "--", sys.executable, "-m", "lm.main"]
    done = subprocess.run(
        [*line, f"--workdir={tmp_path}/calm", *flags], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    workdir, out = tmp_path / "disturbed", tmp_path / "out.txt"
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, virtual_cluster(Path(folder), 2) as cluster:
        cluster.variables |= {"LM_PYTHON": sys.executable, **environment()} | {
            name: cluster.variables[name] for name in ("PATH", "PYTHONPATH")
        }
        job = cluster.call(
            "sbatch", "--parsable", "--partition=low", f"--chdir={ROOT}", f"--output={out}", "launch/slurm.sbatch",
            f"--workdir={workdir}", *flags,
        ).strip()  # fmt: skip

        def further() -> None:
            """Wait until the run has saved once more than before, in a new sitting."""
            before = (saves(workdir) or [0])[-1]

            def moved() -> bool:
                cluster.restart_requeued()
                text = out.read_text() if out.exists() else ""
                assert "\nerror:" not in text, text
                return (saves(workdir) or [0])[-1] > before

            cluster.until(moved, 240)

        def sittings() -> int:
            return out.read_text().count("compiled; first step")

        further()
        cluster.call("scancel", "--batch", "--signal=TERM", job)  # as --signal=B:TERM@120 does
        cluster.until(lambda: "saved ahead of the time limit" in out.read_text(), 60)
        further()
        assert sittings() == 2
        cluster.call("sbatch", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
        cluster.until(lambda: [row[2] for row in cluster.jobs() if row[0] == job] == ["PENDING"], 60)
        further()
        assert sittings() == 3
        victims = [path for path in Path("/proc").glob("[0-9]*") if cluster.owns(path, 2)]
        for path in victims:
            if f"--workdir={workdir}".encode() in (path / "cmdline").read_bytes():
                os.kill(int(path.name), signal.SIGKILL)
        cluster.until(lambda: "a process died" in out.read_text(), 90)
        last = time.monotonic() + 240
        while cluster.jobs():
            cluster.restart_requeued()
            assert time.monotonic() < last, out.read_text()
            time.sleep(0.5)
        assert sittings() == 4
    assert losses(workdir) == losses(tmp_path / "calm")
    assert json.loads((workdir / "summary.json").read_text())["steps"] == STEPS


GCLOUD = """#!/bin/bash
echo "$*" >> "$LOG"
case "$*" in
  *describe*) cat "$STATE" ;;
  *create*) echo READY > "$STATE" ;;
  *delete*) : > "$STATE" ;;
  *lm.main*)
    echo . >> "$LOG.runs"
    case $(wc -l < "$LOG.runs") in
      1) echo PREEMPTED > "$STATE"; exit 255 ;;
      2) exit 75 ;;
      *) exit "${LAST:-0}" ;;
    esac ;;
esac
"""


@pytest.mark.parametrize("last", [0, 2])
def test_a_tpu_is_made_installed_and_started_again(tmp_path, last):
    """Preempted in the first sitting, a process dead in the second; the third ends, or finds an error."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "tar").write_text("#!/bin/bash\n")  # this folder need not be packed for it
    (tmp_path / "tar").chmod(0o755)
    (tmp_path / "state").touch()
    variables = {
        "TPU": "mine", "ZONE": "here", "TYPE": "v5litepod-16", "SPOT": "1", "PAUSE": "0", "LAST": str(last),
        "LOG": str(tmp_path / "log"), "STATE": str(tmp_path / "state"), "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }  # fmt: skip
    line = ["bash", "launch/tpu_vm.sh", "train", "--config=a.py:text=two words", "--workdir=/shared/run"]
    done = subprocess.run(line, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == last, done.stderr
    calls = [line for line in (tmp_path / "log").read_text().splitlines() if "describe" not in line]
    kinds = [next(kind for kind in ("create", "delete", "scp", "prepare_venv", "lm.main") if kind in call) for call in calls]
    made = ["create", "scp", "prepare_venv", "lm.main"]
    assert kinds == [*made, "delete", *made, "lm.main"]
    assert calls[0] == (
        "compute tpus tpu-vm create mine --zone=here --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot"
    )
    assert "ssh mine --zone=here --worker=all --command=cd lm && .venv/bin/python -m lm.main --distributed=auto" in calls[-1]
    assert calls[-1].endswith(r"--config=a.py:text=two\ words --workdir=/shared/run")


def test_the_jobset_has_the_fields_that_a_run_needs():
    whole = yaml.safe_load((ROOT / "launch" / "gke.yaml").read_text())
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = whole["spec"]["replicatedJobs"]
    spec, name = job["template"]["spec"], f"{whole['metadata']['name']}-{job['name']}-0-0.{whole['metadata']['name']}"
    assert whole["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert whole["spec"]["network"]["enableDNSHostnames"]
    # All start again together: a single pod that came back would wait for partners that are gone.
    assert spec["backoffLimit"] == 0
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert {"--distributed=auto", "--stop_status=75"} <= set(container["args"])
    values = {one["name"]: one.get("value") for one in container["env"]}
    assert values["COORDINATOR"].split(":")[0] == name
    assert int(values["COUNT"]) == spec["parallelism"] == spec["completions"]
    assert "INDEX" in values
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(topology[0]) * int(topology[1])
    assert chips == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["onExitCodes"]["containerName"], rule["onExitCodes"]["values"]) == (container["name"], [1, 2])


def test_the_image_copies_files_that_exist():
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    assert {f"requirements{end}.txt" for end in ("", "-tpu", "-cuda")} <= set(copied)
    assert (ROOT / "lm" / "main.py").exists()
    version = re.search(r"python:(\d\.\d+)", lines[1])
    assert version
    assert version[1] in ("3.11", "3.12", "3.13")
