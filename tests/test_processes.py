"""Processes of one job: how they meet, what they say while they wait, and how they end together."""

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lm import processes, rendezvous
from lm.errors import UserError
from lm.processes import Job, joined
from lm.rendezvous import Line, Place, arrive, gather
from tests.processes import environment


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "HOST:PORT,COUNT,INDEX"),
        ("127.0.0.1,2,0", "HOST:PORT,COUNT,INDEX"),
        ("127.0.0.1:99999,2,0", "port 99999"),
        ("127.0.0.1:1234,2,5", "there is no process 5 of 2"),
        ("127.0.0.1:1234,0,0", "0 processes"),
        ("127.0.0.1:1234,2,-1", "HOST:PORT,COUNT,INDEX"),
        ("no.such.host.invalid:1,2,1", "is no host that this machine can find"),
    ],
)
def test_a_place_that_cannot_be(text, words):
    with pytest.raises(UserError, match=words), joined(text, 1):
        pass


def test_auto_outside_a_cluster():
    code = "from lm.processes import joined\nfrom lm.flags import run\n"
    code += "def main(_):\n with joined('auto', 5): pass\nrun(main)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "--distributed=auto: this is no cluster that jax knows" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_all_meet_and_who_does_not_fit_is_sent_away():
    port = free_port()
    places = [Place("127.0.0.1", port, 3, index) for index in range(3)]
    with ThreadPoolExecutor() as pool:
        zero, one = pool.submit(gather, places[0], 60), pool.submit(arrive, places[1], 60)
        time.sleep(0.5)
        for odd, words in (
            (places[1], "process 1 of 3 is at .* already"),
            (Place("127.0.0.1", port, 2, 1), "waits for 3 processes, this one for 2"),
        ):
            with pytest.raises(UserError, match=words):
                arrive(odd, 10)
        with pytest.raises(UserError, match=f"port {port} is taken"):
            gather(places[0], 10)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert not zero.done()
        two = pool.submit(arrive, places[2], 60)
        lines = zero.result(30)
        assert sorted(lines) == [1, 2]
        assert isinstance(one.result(30), Line)
        assert isinstance(two.result(30), Line)


def test_waiting_is_said_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "QUIET", 0.5)
    port = free_port()
    with ThreadPoolExecutor() as pool:
        one = pool.submit(arrive, Place("127.0.0.1", port, 3, 1), 60)
        with pytest.raises(UserError, match=f"waited 2 s for 1 of 3 processes at 127.0.0.1:{port}"):
            gather(Place("127.0.0.1", port, 3, 0), 2)
        with pytest.raises(UserError, match="waited 2 s for 1 of 3 processes"):  # told, not left to its own time
            one.result(30)
    with pytest.raises(UserError, match=f"waited 1 s for process 0 of 3 at 127.0.0.1:{port}"):
        arrive(Place("127.0.0.1", port, 3, 1), 1)
    said = capsys.readouterr().err
    assert f"waiting for 1 of 3 processes at 127.0.0.1:{port}" in said
    assert f"waiting for process 0 of 3 at 127.0.0.1:{port}" in said


@pytest.mark.parametrize(
    ("last", "words", "status"),
    [(b"", "process 1 of 2 at H:1 died", 75), (b"error no room\n", "process 1 of 2 at H:1 ended: no room", 2),
     (b"end no room\n", "no room", 2), (b"died process 2 died\n", "process 2 died", 75), (b"bye\n", None, None)],
)  # fmt: skip
def test_what_is_told_of_the_end_of_another(monkeypatch, last, words, status):
    left, right = socket.socketpair(socket.AF_UNIX)
    monkeypatch.setattr(Line, "__init__", lambda self, connection, timeout: self.__dict__.update(
        connection=connection, rest=b"", open=True))  # fmt: skip
    ended = []

    class Stopped(Exception):
        pass

    def end(self, reason, status=75):
        ended.append((reason, status))
        raise Stopped

    monkeypatch.setattr(Job, "end", end)
    job = Job("2 at H:1", {1: Line(left, 1)}, None)
    right.sendall(last)
    right.close()
    if words is None:
        job.watch()
    else:
        with pytest.raises(Stopped):
            job.watch()
    assert ended == [(words, status)] * (words is not None)
    left.close()


def test_the_last_save_is_named(tmp_path):
    for name in ("8", "12", "16.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert f"the last save is {tmp_path}/checkpoints/12" in Job("", {}, tmp_path).last_save()
    assert Job("", {}, tmp_path / "none").last_save() == "nothing was saved yet"


WORKER = """
import os, time
from pathlib import Path
from lm.flags import run
from lm.processes import joined
def main(_):
    with joined(os.environ["PLACE"], 60, Path("nowhere")):
        print("joined", flush=True)
        time.sleep(100)
run(main)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_in_a_line(victim):
    """Process 0 is the harder one: jax aborts the others at once when its coordinator is gone."""
    place = f"127.0.0.1:{free_port()},2"
    job = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment() | {"PLACE": f"{place},{index}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in job] == ["joined\n"] * 2
        job[victim].kill()
        began = time.monotonic()
        _, err = job[1 - victim].communicate(timeout=60)
        assert time.monotonic() - began < 10
        assert job[1 - victim].returncode == 75
        lines = [line for line in err.splitlines() if not line.startswith("waiting for ")]  # on a busy machine
        assert lines == [f"error: process {victim} of 2 at {place[:-2]} died; nothing was saved yet"]
    finally:
        for process in job:
            process.kill()
            process.communicate()


def test_an_abort_of_jaxs_service_is_a_line():
    """Where no connection of ours tells of it: the stacks are kept back, the status is 75; another abort stays one."""
    code = """
import ctypes, os, sys
from lm.processes import Job
Job("this job", {}, None).guard()
print("before", file=sys.stderr)
os.write(2, b"a warning\\n")
if sys.argv[1] == "service":
    os.write(2, b"F1130 client.h:80] Terminating process because the JAX distributed service detected\\n @ stack\\n")
ctypes.CDLL(None).abort()
"""
    for kind, status, last in (("service", 75, "error: another process of this job died"), ("other", -6, "a warning")):
        done = subprocess.run([sys.executable, "-c", code, kind], env=environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == status
        assert done.stderr.splitlines()[:2] == ["before", "a warning"]
        assert done.stderr.splitlines()[-1].startswith(last)
        assert "stack" not in done.stderr


def test_jaxs_own_wait_is_bounded(monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "QUIET", 0.1)
    told, job = threading.Event(), Job("this job", {}, None)
    monkeypatch.setattr(Job, "end", lambda self, reason, status: told.set())
    with processes.started(job, 1):
        assert told.wait(10)
    assert "waiting for the processes of this job" in capsys.readouterr().err


def test_a_job_whose_process_was_killed_starts_again(tmp_path):
    """All of it, on another port; a status of 75 likewise; not after another error, nor for ever."""
    code = """
import os, sys, time
from pathlib import Path
folder, kind = Path(sys.argv[1]), sys.argv[2]
place, count, index = sys.argv[-1].removeprefix("--distributed=").split(",")
print("port", place, flush=True)
first = not (folder / f"been-{index}").exists()
(folder / f"been-{index}").touch()
if index == "1" and (first or kind == "always"):
    os.kill(os.getpid(), 9) if kind != "error" else sys.exit(2)
time.sleep(0.5)
sys.exit(75 if first or kind == "always" else 0)
"""
    for kind, status, sittings in (("once", 0, 2), ("error", 2, 1), ("always", 137, 3)):
        (tmp_path / kind).mkdir()
        command = [sys.executable, "-m", "launch.local", "--processes=2", "--restarts=2", "--", sys.executable, "-c", code]
        done = subprocess.run([*command, tmp_path / kind, kind], capture_output=True, text=True, timeout=60)
        assert done.returncode == status, (kind, done.stderr)
        assert len({line.split()[-1] for line in done.stdout.splitlines()}) == sittings
        again = done.stderr.splitlines()
        assert len(again) == sittings - 1
        for i, line in enumerate(again, 1):
            words = f"a process was killed by SIGKILL; all 2 start again and resume (restart {i} of 2)"
            assert line == f"launch.local: {words}"


@pytest.mark.parametrize(("failing", "status"), [("none", 0), ("1", 3)])
def test_one_command_as_a_job_on_this_machine(failing, status):
    code = "import sys; place = sys.argv[-1].split(','); print('I am', *place[1:]); sys.exit(3 * (place[2] == sys.argv[1]))"
    command = [sys.executable, "-m", "launch.local", "--processes=2", "--", sys.executable, "-c", code, failing]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert sorted(done.stdout.splitlines()) == ["0: I am 2 0", "1: I am 2 1"]
    assert done.returncode == status
