"""A save is believed only when it is whole: checksums, fall-back, one owner, what must agree."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Keep
from lm.errors import UserError
from lm.outputs import Claim, output_file
from lm.runs import owned
from lm.sharding import make_mesh
from lm.strict_json import is_sealed, seal
from lm.training.checkpoint import Checkpoints, Damaged
from lm.training.integrity import checksums, device_sums, host_sum
from lm.training.state import TrainState


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, jnp.bfloat16, np.float32, np.int32, bool])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 5), (0, 4), (1000, 3), (64, 1)])
def test_a_checksum_is_the_same_on_host_and_device_and_sees_every_bit(dtype, shape):
    x = np.asarray(np.random.default_rng(0).standard_normal(shape) * 50).astype(dtype)
    plain = host_sum(x)
    assert tuple(map(int, np.asarray(device_sums([jnp.asarray(x)]))[0])) == plain
    for at in range(0, x.size, max(x.size // 7, 1)):
        other = x.copy()
        other.reshape(-1).view(np.uint8)[at * x.itemsize] ^= 1
        assert host_sum(other) != plain


def test_a_checksum_does_not_depend_on_the_mesh():
    x = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2, "context": 1, "expert": 1})
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor"))
    assert checksums({"x": jax.device_put(x, place)}) == checksums({"x": x})


def test_notes_are_sealed():
    notes = json.loads(json.dumps(seal({"seconds": 1.5, "corpus": "abc"})))
    assert is_sealed(notes)
    assert not is_sealed(notes | {"corpus": "abd"})
    assert not is_sealed({"corpus": "abc"})


def state(step: int) -> TrainState:
    params = {"w": np.full((3, 4), step, np.float32)}
    return TrainState(np.int32(step), params, None, None, None, np.int32(0))


@pytest.fixture
def saves(tmp_path):
    """Saves of steps 1 to 3; the newest has figures."""
    checkpoints = Checkpoints(tmp_path, Keep(last=3))
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"tokenizer": ""}, {"loss": 4.0 - step} if step == 3 else None)
    checkpoints.close()
    return tmp_path


def take(folder, read_only=False):
    """What a reader gets of the newest whole save, and the lines that it is told."""
    checkpoints, lines = Checkpoints(folder, Keep(last=3), read_only=read_only), []
    shapes = {"w": jax.ShapeDtypeStruct((3, 4), np.float32)}
    found = checkpoints.first_whole(
        checkpoints.steps()[::-1], lambda step: checkpoints.restore(step, shapes, part="params"), lines.append
    )
    checkpoints.close()
    return found[0], float(found[1]["w"][0, 0]), lines


def flip(path):
    data = bytearray(path.read_bytes())
    for at in (len(data) // 3, len(data) // 2, len(data) - 5):
        data[at] ^= 255
    path.write_bytes(data)


def newest(folder, name):
    if name == "arrays":
        return max((folder / "checkpoints" / "3" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    return folder / "checkpoints" / "3" / name


DAMAGE = {
    "arrays": flip,
    "notes/metadata": flip,
    "state/manifest.ocdbt": lambda path: path.write_bytes(b""),
    "notes": lambda path: (path / "metadata").unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_save_gives_way_to_the_one_before_and_is_set_aside(name, saves):
    DAMAGE[name](newest(saves, name))
    step, value, lines = take(saves, read_only=True)
    assert (step, value) == (2, 2.0)
    assert "3 is damaged" in lines[0]
    assert "taking that of step 2" in lines[0]
    assert (saves / "checkpoints" / "3").is_dir()  # whoever only looks moves nothing
    assert take(saves)[:2] == (2, 2.0)
    assert (saves / "damaged" / "3").is_dir()
    assert not (saves / "checkpoints" / "3").exists()
    assert take(saves) == (2, 2.0, [])


def test_damaged_figures_cost_the_ranking_alone(saves):
    (saves / "checkpoints" / "3" / "metrics" / "metrics").write_text('{"lo')
    assert take(saves) == (3, 3.0, [])


def test_where_no_save_is_whole_nothing_is_moved(saves):
    for step in (1, 2, 3):
        (saves / "checkpoints" / str(step) / "notes" / "metadata").unlink()
    with pytest.raises(UserError, match="no whole one is left"):
        take(saves)
    assert not (saves / "damaged").exists()


def test_a_later_evaluation_is_added_to_a_save(tmp_path):
    checkpoints = Checkpoints(tmp_path, Keep(last=1, best=1))
    for step, loss in ((1, 0.5), (2, 0.4), (3, 0.6)):
        checkpoints.save(step, state(step), {"looked": False})
        checkpoints.amend(step, {"looked": True}, {"loss": loss})
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.results("best")[0] == 2
    assert checkpoints.notes(3)["looked"]
    checkpoints.close()
    with pytest.raises(Damaged):
        Checkpoints(tmp_path, Keep(), read_only=True).notes(7)


HOLD = """
import sys, time
from pathlib import Path
from lm.outputs import Claim
with Claim(Path(sys.argv[1]), "name another"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_owner_and_is_free_when_that_dies(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on .*: wait for it to end, or name another"):
        Claim(tmp_path, "name another")
    with pytest.raises(UserError, match="in use"), owned(tmp_path):
        raise AssertionError
    holder.kill()
    holder.communicate()
    with owned(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not tmp_path.exists()  # nothing was written to it


@pytest.mark.parametrize(("name", "folder"), [("metrics.jsonl", True), ("checkpoints", False)])
def test_what_stands_in_a_runs_way_is_named_at_once(name, folder, tmp_path):
    (tmp_path / name).mkdir() if folder else (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=name), owned(tmp_path):
        raise AssertionError


def test_an_output_replaces_only_what_its_own_command_wrote(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    name, run = tmp_path / "figures.json", tmp_path / "run"
    output_file(str(name), "lm.evaluate").write("{}")
    output_file(str(name), "lm.evaluate").write("[]")
    assert name.read_text() == "[]"
    for command in ("lm.generate", "lm.predict"):
        with pytest.raises(UserError, match="--overwrite"):
            output_file(str(name), command)
    name.write_text("changed by hand")
    with pytest.raises(UserError, match="changed since"):
        output_file(str(name), "lm.evaluate")
    assert output_file(str(name), "lm.evaluate", overwrite=True)
    with pytest.raises(UserError, match="is the input itself"):
        output_file(str(name), "lm.evaluate", [name], overwrite=True)
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for inside in ("config.json", "summary.json", "checkpoints/x.json"):
        with pytest.raises(UserError, match="belongs to"):
            output_file(str(run / inside), "lm.evaluate", overwrite=True)
    assert output_file(str(run / "mine.json"), "lm.evaluate")
    with pytest.raises(UserError, match="no folder"):
        output_file(str(tmp_path / "nowhere" / "x"), "lm.evaluate")
