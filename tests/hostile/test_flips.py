"""Bytes flipped and files cut in a run folder: the run goes on from a whole save, or says in one line why not; no other figure.

Restoring and one evaluation stand for going on: equal parameters, optimizer and notes of a step go on equally.
"""

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lm.errors import translate
from tests.test_runs import losses, run, straight, text  # noqa: F401  fixtures

TINY = "tests/configs/tiny.py"


def damage(path: Path, chance: random.Random) -> str:
    """Flip a byte of a file, or cut it; say what was done."""
    raw = bytearray(path.read_bytes())
    if not raw or chance.random() < 0.3:
        size = chance.randrange(len(raw) + 1)
        path.write_bytes(raw[:size])
        return f"{path} cut from {len(raw)} to {size}"
    place = chance.randrange(len(raw))
    raw[place] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)
    return f"{path} byte {place} flipped"


def opened_or_refused(workdir: Path):
    """Open a run as generation does: parameters, or the one line that refuses it."""
    from lm.convert.runs import opened

    try:
        return opened(str(workdir), None)
    except BaseException as error:
        line = translate(error)
        if line is None:
            raise
    assert "\n" not in line
    return line


def flips(run_folder: Path, folder: Path, count: int, seed: int) -> None:
    """Damage one file after another in a fresh copy; what is opened is one of the saves, to the bit."""
    import jax

    from lm.convert.runs import opened

    chance, wholes = random.Random(seed), []
    for step in ("12", "8"):
        wholes.append([np.asarray(x) for x in jax.tree.leaves(opened(str(run_folder), None, step)[1])])
    files = sorted(p.relative_to(run_folder) for p in run_folder.rglob("*") if p.is_file() and p.suffix != ".png")
    for number in range(count):
        copy = folder / str(number)
        shutil.copytree(run_folder, copy)
        told = damage(copy / chance.choice(files), chance)
        found = opened_or_refused(copy)
        if not isinstance(found, str):
            leaves = [np.asarray(x) for x in jax.tree.leaves(found[1])]
            same = [all(np.array_equal(a, b) for a, b in zip(leaves, whole, strict=True)) for whole in wholes]
            assert any(same), f"{told}: weights of no save"
        shutil.rmtree(copy)


def test_eight_flips_and_cuts_give_no_other_weights(straight, tmp_path):  # noqa: F811
    flips(straight, tmp_path, 8, seed=1)


@pytest.mark.slow
def test_five_hundred_flips_and_cuts_give_no_other_weights(straight, tmp_path):  # noqa: F811
    flips(straight, tmp_path, 500, seed=2)


@pytest.mark.slow
def test_runs_go_on_from_a_whole_save_with_the_same_losses(straight, text, tmp_path):  # noqa: F811
    """Forty whole commands: after each damage the losses logged are those of the undisturbed run."""
    chance = random.Random(3)
    files = sorted(p.relative_to(straight) for p in straight.rglob("checkpoints/12/**/*") if p.is_file())
    for number in range(40):
        copy = tmp_path / str(number)
        shutil.copytree(straight, copy)
        told = damage(copy / chance.choice(files), chance)
        done = run(f"--workdir={copy}", config=f"{TINY}:text={text}")
        assert done.returncode in (0, 2), f"{told}: {done.stderr[-500:]}"
        assert "Traceback" not in done.stderr, told
        if done.returncode == 0:
            assert losses(copy) == losses(straight), told
        shutil.rmtree(copy)


def test_a_damaged_newest_save_is_told_kept_and_not_believed(straight, text, tmp_path):  # noqa: F811
    copy = tmp_path / "run"
    shutil.copytree(straight, copy)
    path = max((copy / "checkpoints/12/state").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 3] = b"\x55\x55\x55"
    path.write_bytes(raw)
    done = run(f"--workdir={copy}", config=f"{TINY}:text={text}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"12 is damaged \(.*\).*\b8\b", done.stdout + done.stderr)
    assert losses(copy) == losses(straight)
    assert any(p.read_bytes() == bytes(raw) for p in copy.rglob(path.name)), "the damaged save was deleted"
