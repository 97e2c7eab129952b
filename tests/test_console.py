"""The console: plain lines in files, a bar on a terminal, an ETA that evaluations do not spoil."""

import os
import pty
import re
import subprocess
import sys

import pytest

from lm import console
from lm.console import Console, Pace, duration, number, table

VALUES = {"train/loss": 3.21449, "train/lr": 1e-3, "train/tokens_per_second": 15012.3, "train/mfu": 0.41}

PROGRAM = f"""
from lm.console import Console
screen = Console(steps=2000, start=90)
for step in (100, 110, 1000):
    screen.log(step, {VALUES!r})
screen.log(1000, {{"eval/validation/loss": 3.1, "eval/validation/perplexity": 22.2}})
screen.say("sample: [bold]caf\\u00e9\\x1b[31m")
screen.close()
"""


def clean_env(**extra: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("TERM", "COLUMNS")} | extra


def test_lines_in_a_file():
    # FORCE_COLOR makes rich believe in a terminal; an ASCII stdout must not stop a run.
    env = clean_env(FORCE_COLOR="1", PYTHONIOENCODING="ascii", TERM="xterm-256color")
    done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, check=True, env=env)
    shown = done.stdout.decode("ascii").splitlines()
    assert shown[0] == "step  100/2000  loss  3.214  lr 1.0e-3     15,012 tok/s  mfu 41%"
    assert shown[1].startswith("step  110/2000  loss  3.214  lr 1.0e-3     15,012 tok/s  mfu 41%  eta 0:0")
    assert shown[3] == "step 1000/2000  validation/loss 3.1  validation/perplexity 22.2"
    assert shown[4] == "sample: [bold]caf\\xe9\\x1b[31m"
    assert len(shown) == 5


def run_on_terminal(program: str, **env: str) -> str:
    """Run a program on a terminal of its own and return what it shows."""
    mine, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env=clean_env(**env))
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:  # Linux says so at the end of a pseudo-terminal
            break
        if not part:
            break
        shown += part
    os.close(mine)
    assert child.wait() == 0
    return shown.decode()


def test_bar_on_a_terminal():
    shown = run_on_terminal(PROGRAM, TERM="xterm-256color", COLUMNS="100", PYTHONIOENCODING="utf-8", NO_COLOR="1")
    assert "step 1000/2000 ━" in shown
    assert "loss 3.214 15,012 tok/s mfu 41%" in shown
    assert re.search(r"step +1000/2000  loss  3.214  lr 1.0e-3 +15,012 tok/s  mfu 41%\r\n", shown)  # stays above it
    assert "eta " in shown
    assert "step 1000/2000  validation/loss 3.1  validation/perplexity 22.2\r\n" in shown
    assert "sample: [bold]café\\x1b[31m\r\n" in shown  # neither markup nor an escape of its own
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_dumb_terminal_gets_plain_lines():
    assert "\x1b" not in run_on_terminal(PROGRAM, TERM="dumb")


def test_training_and_evaluation_values_of_one_call(capsys):
    screen = Console(steps=10)
    screen.log(5, {"train/loss": 1.0, "eval/a/accuracy": 0.5})
    assert capsys.readouterr().out == "step  5/10  loss  1.000\nstep  5/10  a/accuracy 0.5\n"


def test_not_finite_values_are_shown(capsys):
    Console(steps=10).log(5, {"train/loss": float("nan"), "train/mfu": float("nan"), "train/lr": 0.0})
    assert capsys.readouterr().out == "step  5/10  loss    nan  lr 0.0e+0  mfu nan%\n"


def test_eta_leaves_compilation_and_evaluation_out():
    pace = Pace()
    now = 100.0  # compilation: before the first log
    pace.train(10, now)
    assert pace.eta(10) is None
    for step in range(20, 100, 10):
        now += 5.0
        pace.train(step, now)
        if step % 20 == 0:
            now += 300.0  # an evaluation as often as every second log
            pace.pause(step, now)
    assert pace.eta(100) == pytest.approx(50.0)


def test_eta_shrugs_off_a_hiccup_and_follows_a_change():
    pace = Pace(stretches=5)
    for step, now in enumerate([0, 1, 2, 3, 90, 91]):
        pace.train(step, now)
    assert pace.eta(7) == 7
    for step in range(6, 12):
        pace.train(step, 91 + 2 * (step - 5))
    assert pace.eta(7) == 14


def test_evaluation_marks_the_pace(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 60.0, 560.0, 1060.0, 1070.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    screen = Console(steps=110)
    screen.log(1, {"train/loss": 1.0})
    screen.log(11, {"train/loss": 1.0})
    screen.log(11, {"eval/a": 1.0})
    screen.log(12, {"train/loss": 1.0, "eval/a": 1.0})
    screen.log(13, {"train/loss": 1.0, "eval/a": 1.0})
    screen.log(23, {"train/loss": 1.0})
    assert capsys.readouterr().out.splitlines()[-1].endswith("eta 1:27")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (83, "1:23"), (59.7, "1:00"), (7384, "2:03:04"), (273600, "3d 4h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.91234, "0.9123"), (24.126, "24.13"), (15012.3, "15,012"), (float("nan"), "nan")]
)
def test_number(value, text):
    assert number(value) == text


def test_table():
    shown = table([["a", 1.5, 10], ["longer", 1234.0, 9]], ["name", "loss", "n"])
    assert shown.splitlines() == [
        "name     loss   n",
        "------  -----  --",
        "a         1.5  10",
        "longer  1,234   9",
    ]
    assert table([], ["a", "b"]) == "a  b\n-  -"
